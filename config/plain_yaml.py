"""Read YAML that holds plain values only, so that a hostile file can neither run code nor fill the memory."""

from pathlib import Path

import yaml
from yaml.composer import ComposerError
from yaml.nodes import Node

from runtime.errors import MissingFileError, UserError, UserFileError

LARGEST_FILE = 2**16  # bytes; config.yaml with all its comments has about 12,000
DEEPEST = 10  # levels of nesting; a configuration has three
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: an impossible date or a number that is too long


class PlainLoader(yaml.SafeLoader):
    """Refuse tags that make objects, aliases (a short file could stand for gigabytes) and deep nesting."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            problem = f"*{event.anchor} is an alias, which is not allowed here; write its value out"
            raise ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
        if self.depth == DEEPEST:
            raise ComposerError(None, None, f"more than {DEEPEST} nested brackets", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> object:
    """Return the plain value of a YAML text. Raise one of NOT_YAML if it has none."""
    return yaml.load(text, PlainLoader)


def read_yaml_file(path: Path) -> object:
    """Return the value that a YAML file holds. Raise UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UserError(f"it has more than {LARGEST_FILE} bytes")
        return parse_yaml(text.decode("utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"no configuration at {path}; name one with --config") from None
    except OSError as error:
        raise UserFileError(f"can't read {path}: {error.strerror}; --config takes a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; --config takes a YAML file") from None
    except NOT_YAML as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it there") from None
