"""What is wrong with a field of a request, in words for people who do not know its type."""

from __future__ import annotations

import re
from functools import cache

import msgspec
from msgspec import Struct, inspect

from gateway.domain.errors import InvalidRequest

PLACE = re.compile(r" - at `\$(?:\.(?P<path>\w++(?:\[\d++\]|\.\w++)*+))?+[^`]*+`\Z")
MISSING = re.compile(r"Object missing required field `(\w+)`")
UNKNOWN = "Object contains unknown field "
GOT = re.compile(r", got `(\w+)`")
KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a fraction",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
"""JSON's types as msgspec names them."""
PLAIN: dict[type[inspect.Type], str] = {
    inspect.StrType: "text",
    inspect.IntType: "a whole number",
    inspect.BoolType: "true or false",
    inspect.DictType: "an object",
    inspect.StructType: "an object",
    inspect.ListType: "a list",
}


def to_invalid(fault: msgspec.ValidationError, *types: type[Struct]) -> InvalidRequest:
    """Turn msgspec's sentence about one of the `types` into one about a parameter."""
    text = str(fault)
    place = PLACE.search(text)
    path = (place["path"] if place else None) or ""
    if missing := MISSING.match(text):
        name = f"{path}.{missing[1]}".removeprefix(".")
        message = f"Missing required parameter: '{name}'."
        return InvalidRequest(message, param=name, code="missing_required_parameter")
    name = path or "body"
    if text.startswith(UNKNOWN):  # its name may be anything
        return InvalidRequest(f"'{name}' has an unknown field. Leave it out.", param=name)
    got = GOT.search(text)
    message = f"'{name}' must be {takes(name, types)}"
    message += f", not {KINDS.get(got[1], got[1])}." if got else "."
    return InvalidRequest(message, param=name, code="invalid_type" if got else "invalid_value")


def takes(path: str, types: tuple[type[Struct], ...]) -> str:
    name = path.rpartition(".")[2]
    found = (wanted(type_)[name] for type_ in types if name in wanted(type_))
    return next(found, "an object" if name.endswith("]") else "something else")


@cache
def wanted(type_: type[Struct]) -> dict[str, str]:
    return {field.encode_name: described(field.type) for field in msgspec.structs.fields(type_)}


def described(type_: object) -> str:
    match inspect.type_info(type_):
        case inspect.UnionType(types=types):
            return next(in_words(each) for each in types if not isinstance(each, inspect.NoneType))
        case info:
            return in_words(info)


def in_words(info: inspect.Type) -> str:
    """A type that may not be null."""
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in info.values)
    if isinstance(info, inspect.IntType) and info.ge is not None and info.le is not None:
        return f"a whole number from {info.ge} to {info.le}"
    return PLAIN.get(type(info), "something else")
