"""Read YAML that holds plain values only, so that a hostile file can neither run code nor fill the memory."""

from contextlib import suppress
from pathlib import Path

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode

from runtime.errors import MissingFileError, UserError, UserFileError

LARGEST_FILE = 2**16  # bytes; config.yaml with all its comments has about 12,000
DEEPEST = 10  # levels of nesting; a configuration has three
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: an impossible date or a number that is too long


ENCODINGS = {  # of text files that are not UTF-8, with the codecs to try; UTF-16 may lack its mark
    "UTF-32": ("utf-32",),
    "UTF-16": ("utf-16", "utf-16-le", "utf-16-be"),
    "Latin-1 or Windows-1252": ("cp1252",),
}


class RepeatedKeyError(UserError):
    """A section that holds a key twice, of which YAML would silently take the last."""


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
        if isinstance(node, MappingNode):
            check_keys(node)
        return node


def check_keys(node: MappingNode) -> None:
    """Raise RepeatedKeyError where a key stands twice."""
    lines = dict[str, int]()
    for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
        line = key.start_mark.line + 1
        if key.value in lines:
            raise RepeatedKeyError(f"the key {key.value} is in lines {lines[key.value]} and {line}; remove one")
        lines[key.value] = line


def parse_yaml(text: str) -> object:
    """Return the plain value of a YAML text. Raise one of NOT_YAML if it has none."""
    return yaml.load(text, PlainLoader)


def read_yaml_file(path: Path) -> object:
    """Return the value that a YAML file holds. Raise UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"it has more than {LARGEST_FILE} bytes")
        return parse_yaml(content.decode("utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"no configuration at {path}; name one with --config") from None
    except OSError as error:
        raise UserFileError(f"can't read {path}: {error.strerror}; --config takes a YAML file") from None
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}") from None
    except NOT_YAML as error:
        if encoding := other_encoding(content):
            remedy = "save it as UTF-8 (an editor offers the encoding under Save as)"
            raise UserError(f"{path} is text in {encoding}; {remedy}") from None
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path} is not a text file; --config takes a YAML file") from None
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it there") from None


def other_encoding(content: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8; None for UTF-8, and for content that is no text."""
    codecs = {codec: encoding for encoding, group in ENCODINGS.items() for codec in group}
    for codec, encoding in {"utf-8": None, **codecs}.items():
        with suppress(UnicodeDecodeError):
            text = content.decode(codec)
            is_latin = sum(character < "\u0250" for character in text) > len(text) / 2  # not what another codec gives
            if is_latin and all(character.isprintable() or character in "\r\n\t\ufeff" for character in text):
                return encoding
    return None
