"""From anything a user has to a Program."""
