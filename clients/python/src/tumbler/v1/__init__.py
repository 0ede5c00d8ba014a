"""The generated messages and stubs of ``tumbler.v1``; everything here but this file is made by ``make generate``."""
