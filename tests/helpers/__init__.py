"""Code that tests of several rooms share: references, makers of files, and runs of the tools."""
