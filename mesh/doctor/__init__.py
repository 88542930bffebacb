"""What is wrong on this host, and the remedy of each: the checks of `mesh doctor`, and those before a roll."""
