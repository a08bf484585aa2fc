"""Training from the command line: one trainer for compiled folders and for structure learning, with checkpoints."""
