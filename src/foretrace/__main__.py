"""`foretrace`, and `python -m foretrace`: the command line, quiet when it is interrupted while it still imports."""

import sys


def main() -> None:
    """The `foretrace` command."""
    try:
        from .cli import app

        app()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
