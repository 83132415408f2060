"""Whether a chat template wants a message's content as a string or as a list of parts, by how it is written.

A template that loops over a message's content wants parts: over a string it would loop character by
character, find no part in it, and write an empty conversation. vLLM looks in the same way
(`--chat-template-content-format auto`). A template that can do both gets parts too.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2.nodes import Assign, Const, Filter, For, Getattr, Getitem, Name, Node, Slice, Test


def loops_over_content(template: Node) -> bool:
    """Whether the template has a loop over a message's content, or over a variable that has it."""
    lists = _names_of(template, {"messages"})
    items = {
        loop.target.name
        for loop in template.find_all(For)
        if isinstance(loop.target, Name) and _is_one_of(loop.iter, lists)
    }
    items |= {name for name, value in _assignments(template) if _is_item(value, lists)}
    contents = {name for name, value in _assignments(template) if _is_content(value, items, lists)}
    contents = _names_of(template, contents)
    loops = [loop.iter for loop in template.find_all(For)]
    return any(_is_content(each, items, lists) or _is_one_of(each, contents) for each in loops)


def _names_of(template: Node, names: set[str]) -> set[str]:
    """`names`, and variables that are assigned one of them, or a filtered one or a slice of it."""
    while True:
        found = {name for name, value in _assignments(template) if _is_one_of(value, names)}
        if found <= names:
            return names
        names = names | found


def _assignments(template: Node) -> Iterator[tuple[str, Node]]:
    for each in template.find_all(Assign):
        if isinstance(each.target, Name):
            yield each.target.name, each.node


def _bare(value: Node | None) -> Node | None:
    """`value` without filters, tests and slices."""
    while isinstance(value, Filter | Test) or (isinstance(value, Getitem) and isinstance(value.arg, Slice)):
        value = value.node
    return value


def _is_one_of(value: Node | None, names: set[str]) -> bool:
    value = _bare(value)
    return isinstance(value, Name) and value.name in names


def _is_item(value: Node | None, lists: set[str]) -> bool:
    """Whether `value` is one entry of a list in one of these variables."""
    value = _bare(value)
    return isinstance(value, Getitem) and _is_one_of(value.node, lists)


def _is_content(value: Node | None, items: set[str], lists: set[str]) -> bool:
    """Whether `value` is the content of a message: of a variable that has one, or of an entry of a list."""
    value = _bare(value)
    if isinstance(value, Getattr):
        is_content = value.attr == "content"
    elif isinstance(value, Getitem) and isinstance(value.arg, Const):
        is_content = value.arg.value == "content"
    else:
        return False
    return is_content and (_is_one_of(value.node, items) or _is_item(value.node, lists))
