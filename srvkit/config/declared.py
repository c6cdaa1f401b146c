"""What a class declares as its options: the keys, and the types as they are meant.

Works for dataclasses, `msgspec.Struct`, named tuples, and classes and callables whose constructor's
parameters are the options. Values are `typed`'s business.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec

from srvkit.contracts import Size


@dataclasses.dataclass(frozen=True)
class Field:
    """One key that a class declares."""

    key: str
    wanted: Any  # the annotation
    required: bool
    minimum: float | None = None
    maximum: float | None = None


def fields_of(declared: Callable[..., Any]) -> dict[str, Field]:
    """Return what a class or callable declares, by the names of its constructor's parameters.

    Raises whatever an annotation raises that cannot be resolved: `NameError`, or anything else.
    """
    if is_struct(declared):
        struct: Any = declared
        return {
            field.name: Field(field.encode_name, field.type, field.required)
            for field in msgspec.structs.fields(struct)
        }
    if is_typeddict(declared):
        needed = declared.__required_keys__  # type: ignore[attr-defined]
        hints = get_type_hints(declared, include_extras=True)
        # Of annotations that are text, as after `from __future__ import annotations`, it knows nothing.
        told = {Required: True, NotRequired: False}
        return {
            name: Field(name, hint, told.get(get_origin(hint), name in needed))
            for name, hint in hints.items()
        }
    annotated = declared
    metadata: dict[str, Mapping[str, Any]] = {}
    if dataclasses.is_dataclass(declared):
        metadata = {field.name: field.metadata for field in dataclasses.fields(declared)}
    elif isinstance(declared, type) and not is_named_tuple(declared):
        annotated = declared.__init__  # type: ignore[misc]  # of this very class, whose parameters are read
    hints = get_type_hints(annotated, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(declared).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        wanted = without_none(hints.get(name, Any))
        if name == "max_message" and wanted is int:
            wanted = Size
        bounds = metadata.get(name, {})
        required = parameter.default is parameter.empty
        found[name] = Field(name, wanted, required, bounds.get("minimum"), bounds.get("maximum"))
    return found


def without_none(wanted: Any) -> Any:
    """Return a union without None: TOML has no such value."""
    if is_union(wanted):
        rest = [part for part in get_args(wanted) if part is not NoneType]
        return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - made at run time
    return wanted


def meant(wanted: Any) -> Any:
    """Return the type that is meant, without what stands around it: None, Final, InitVar, other names."""
    for _ in range(20):  # a name for itself has no end
        before, wanted = wanted, without_none(wanted)
        if isinstance(wanted, dataclasses.InitVar):
            wanted = wanted.type
        elif get_origin(wanted) in (Final, Required, NotRequired):
            (wanted,) = get_args(wanted)
        elif isinstance(wanted, TypeVar):
            wanted = wanted.__bound__ or Any
        else:
            # Of NewType, and of a `type` statement; both are known by these names only on older Pythons.
            wanted = getattr(wanted, "__supertype__", getattr(wanted, "__value__", wanted))
        if wanted is before:
            return wanted
    return Any


def is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, UnionType)


def is_annotated(wanted: Any) -> bool:
    return get_origin(wanted) is Annotated


def is_struct(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)


def is_named_tuple(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, tuple) and hasattr(wanted, "_fields")


def is_table_class(wanted: Any) -> bool:
    """Tell whether a table becomes one of these, by its keys."""
    return is_struct(wanted) or (isinstance(wanted, type) and dataclasses.is_dataclass(wanted))
