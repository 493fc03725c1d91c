"""Read JSON files that may be missing or damaged."""

import json
from pathlib import Path


def read_json_object(path: Path) -> dict[str, object]:
    """Return the object in a JSON file; an empty one where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
