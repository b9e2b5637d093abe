"""What is wrong with a field of a request, in words for people who do not know its type."""

from __future__ import annotations

import re
from functools import cache

import msgspec
from msgspec import Struct, inspect

from gateway.domain.errors import InvalidRequest

PLACE = re.compile(r" - at `\$(?:\.(?P<name>\w++))?+[^`]*+`\Z")
MISSING = re.compile(r"Object missing required field `(\w+)`\Z")
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
}


def to_invalid(fault: msgspec.ValidationError, type_: type[Struct]) -> InvalidRequest:
    """Turn msgspec's sentence about a `type_` into one about a parameter."""
    text = str(fault)
    if missing := MISSING.match(text):
        name = missing[1]
        message = f"Missing required parameter: '{name}'."
        return InvalidRequest(message, param=name, code="missing_required_parameter")
    place = PLACE.search(text)
    name = (place["name"] if place else None) or "body"
    got = GOT.search(text)
    message = f"'{name}' must be {wanted(type_).get(name, 'something else')}"
    message += f", not {KINDS.get(got[1], got[1])}." if got else "."
    return InvalidRequest(message, param=name, code="invalid_type" if got else "invalid_value")


@cache
def wanted(type_: type[Struct]) -> dict[str, str]:
    """What each field of a type takes."""
    return {field.encode_name: described(field.type) for field in msgspec.structs.fields(type_)}


def described(type_: object) -> str:
    """One type."""
    match inspect.type_info(type_):
        case inspect.UnionType(types=types):
            return next(in_words(each) for each in types if not isinstance(each, inspect.NoneType))
        case info:
            return in_words(info)


def in_words(info: inspect.Type) -> str:
    """One that may not be null."""
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in info.values)
    if isinstance(info, inspect.IntType) and info.ge is not None and info.le is not None:
        return f"a whole number from {info.ge} to {info.le}"
    return PLAIN.get(type(info), "something else")
