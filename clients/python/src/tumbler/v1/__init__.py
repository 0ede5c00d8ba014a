"""The generated messages and stubs of ``tumbler.v1``. ``make generate`` writes everything here except this file."""
