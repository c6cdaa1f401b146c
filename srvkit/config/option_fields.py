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
    Generic,
    NotRequired,
    Protocol,
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
    alias: Any = declared
    declared = get_origin(alias) or alias
    if is_struct(declared):
        return {
            field.name: Field(field.encode_name, field.type, field.required)
            for field in msgspec.structs.fields(alias)
        }
    if is_typeddict(declared):
        needed = declared.__required_keys__  # type: ignore[attr-defined]
        hints = _hints(declared, alias)
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
    hints = _hints(annotated, alias)
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


def _hints(annotated: Any, alias: Any) -> dict[str, Any]:
    """Return the annotations, with what generic classes are given in the place of their type variables."""
    hints = get_type_hints(annotated, include_extras=True)
    given = _given(alias)
    if not any(given.values()):
        return hints
    return {
        name: _filled_in(hint, given.get(_owner(annotated, given, name), {})) for name, hint in hints.items()
    }


def _given(alias: Any) -> dict[Any, dict[Any, Any]]:
    """Return what a class, and each that it is built on, is given for its type variables; itself first."""
    found: dict[Any, dict[Any, Any]] = {}
    todo = [alias]
    while todo:
        one = todo.pop()
        cls = get_origin(one) or one
        if isinstance(cls, type) and cls not in found:
            variables = getattr(cls, "__parameters__", ())
            known = all(isinstance(variable, TypeVar) for variable in variables)
            found[cls] = given = dict(zip(variables, get_args(one), strict=False)) if known else {}
            bases = vars(cls).get("__orig_bases__", cls.__bases__)
            todo += [_filled_in(base, given) for base in bases if get_origin(base) not in (Generic, Protocol)]
    return found


def _owner(annotated: Any, given: Mapping[Any, Any], name: str) -> Any:
    """Return the class whose annotation it is: the constructor's, or the one that names the field."""
    if not isinstance(annotated, type):
        return next((one for one in given if vars(one).get("__init__") is annotated), None)
    naming = [one for one in given if name in inspect.get_annotations(one)]
    # A TypedDict names what it inherits, too.
    return naming[-1 if is_typeddict(annotated) else 0] if naming else None


def _filled_in(hint: Any, given: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return given.get(hint, hint)
    if isinstance(hint, dataclasses.InitVar):
        return dataclasses.InitVar(_filled_in(hint.type, given))
    variables = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    if not any(variable in given for variable in variables):
        return hint
    return hint[tuple(given.get(variable, variable) for variable in variables)]


def without_none(wanted: Any) -> Any:
    """Return a union without None: TOML has no such value."""
    if is_union(wanted):
        parts = get_args(wanted)
        rest = [part for part in parts if part is not NoneType]
        if len(rest) < len(parts):  # else the very same one: since Python 3.14 each is made anew
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
            # What stands for it where it is given nothing can be said since Python 3.13.
            has_default = getattr(wanted, "has_default", bool)()
            wanted = getattr(wanted, "__default__", Any) if has_default else wanted.__bound__ or Any
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
