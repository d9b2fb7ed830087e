"""The suites: cases as data, one file a suite. No torch."""
