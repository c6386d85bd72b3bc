"""`python -m qwen_eval`: hands over to the command line."""

from qwen_eval.cli import main

if __name__ == "__main__":
    main()
