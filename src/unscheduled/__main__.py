"""``python -m unscheduled``."""

from unscheduled.cli import main

if __name__ == "__main__":
    main()
