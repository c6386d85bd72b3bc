"""The scoring rules: pure functions from an output and a gold answer to a verdict. No model, no benchmark, no clock."""
