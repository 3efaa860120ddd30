//! Nothing: the tests are in `tests/e2e`, one binary for all of them.
