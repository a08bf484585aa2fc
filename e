error: the example inputs do not fit Sequential.forward: missing a required argument: 'input'
