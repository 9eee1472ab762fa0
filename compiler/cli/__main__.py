"""`python -m rhoc.compiler.cli`, for where the script `rhoc` is not on the path."""

from . import main

if __name__ == "__main__":  # worker processes import this module too
    main()
