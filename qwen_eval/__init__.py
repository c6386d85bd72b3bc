"""qwen_eval: the published prompts, the published scoring rules, and how sure a score is."""

__all__ = ["__version__"]

__version__ = "0.1.0"
