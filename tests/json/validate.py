"""Validates JSON lines of commands: reads {COMMAND: [OBJECT, ...]} from standard input; the argument is the folder of schemas.

A line must match the schema of its command, and must not match it without one of its members or with one more.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

# Members that not every object of a type has.
OPTIONAL = {"path_hex", "target"}

mistakes = []
seen = {}
for command, lines in json.load(sys.stdin).items():
    schema = json.loads((Path(sys.argv[1]) / f"{command}.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    types = {name: Draft202012Validator(one) for name, one in schema["$defs"].items()}
    for line in lines:
        if not validator.is_valid(line):
            mistakes.append(f"{command}: not in the schema: {json.dumps(line)}")
            continue
        seen.setdefault(command, set()).update(name for name, one in types.items() if one.is_valid(line))
        objects = line if isinstance(line, list) else [line]
        for at, found in enumerate(objects):
            others = [({name: value for name, value in found.items() if name != gone}, gone) for gone in found]
            others.append(({**found, "unheard": 1}, "unheard"))
            for other, name in others:
                changed = objects[:at] + [other] + objects[at + 1 :] if isinstance(line, list) else other
                if name not in OPTIONAL and validator.is_valid(changed):
                    mistakes.append(f"{command}: {name} may be missing or added: {json.dumps(line)}")
print(json.dumps({"mistakes": mistakes, "seen": {command: sorted(types) for command, types in seen.items()}}))
