"""What an extra of pyproject.toml asks for, one a line, so that it can be installed alone: extra.py docs."""
import sys

from bounds import project

if __name__ == "__main__":
    print("\n".join(project()["optional-dependencies"][sys.argv[1]]))
