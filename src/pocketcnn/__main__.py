"""`python -m pocketcnn` is the `pocketcnn` command."""

from pocketcnn.cli import main

if __name__ == "__main__":
    main()
