"""A package, so that a process that a test starts finds the test's module and no ``tests`` of another distribution."""
