"""How the documentation is built: ``sphinx-build -W -n -b html docs OUTPUT``, without the network."""

from __future__ import annotations

import builtins
import importlib
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

DOCS = Path(__file__).parent
# The checkout's own sources, whatever is installed.
sys.path.insert(0, str(DOCS.parent))

import persistcoll  # noqa: E402
from docs.pictures import PICTURES  # noqa: E402

project = "persistcoll"
author = "persistcoll developers"
copyright = "2026, persistcoll developers"
version = release = persistcoll.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
# A block says its language, so that tests/docs knows what to run.
highlight_language = "none"
nitpicky = True
# Names that annotations hold and no page describes.
nitpick_ignore_regex = [
    ("py:.*", r"(.*\.)?_?[A-Z]([a-z]*_(co|contra))?"),  # type variables: T, T_co
    ("py:.*", r"hypothesis\..*"),
    ("py:class", "Durability|OnCorruption"),  # aliases whose values the text beside them lists
    ("py:class", "ModuleType|ellipsis"),
    ("py:class", "BaseQueue"),  # what all classes of queues are; the pages name those
    ("py:class", r"persistcoll\.testing\.laws\.\w+_harness\.\w*Harness"),  # what laws work with
    ("py:class", r"persistcoll\.engine\.(memory|transaction_hooks)\..*|ServerState"),  # what they return
    (
        "py:class",
        r"persistcoll\.dicts\.views\..*|Pairs|persistcoll\.container\.Container",
    ),  # as their names say
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
autoclass_content = "both"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"persistcoll {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["persistcoll.css"]
# The partner of the theme's light style. The theme's dark one underlines modules, as if they were links.
pygments_dark_style = "a11y-high-contrast-dark"

_LIBRARY = "https://docs.python.org/3/library"
_BUILTIN_TYPES = {
    "bytearray",
    "bytes",
    "dict",
    "frozenset",
    "list",
    "memoryview",
    "range",
    "set",
    "str",
    "tuple",
}
# In the standard library of a newer Python than the one that may be building.
_NEWER = {"queue.ShutDown": "queue.html#queue.ShutDown"}


def link_to_standard_library(app, env, node, content):
    """Resolve a reference into Python's own library by looking the name up in the running Python.

    The usual way fetches an inventory, and this build has no network. A name that does not exist
    stays unresolved, so that the build fails on it.
    """
    if node.get("refdomain") != "py":
        return None
    page = _page_of(node["reftarget"])
    if page is None:
        return None
    return nodes.reference("", "", content, internal=False, refuri=f"{_LIBRARY}/{page}")


def link_to_home(app, env, node, content):
    """Resolve a name of ours that is described elsewhere, as ``persistcoll.ClosedError`` is in its module.

    Only where it is the one described object of that name, so that no link leads to a namesake.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    name = "." + node["reftarget"].removeprefix("persistcoll.")
    homes = [full for full, entry in domain.objects.items() if full.endswith(name) and not entry.aliased]
    if len(homes) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, content)


def _page_of(target: str) -> str | None:
    if target in _NEWER:
        return _NEWER[target]
    value = getattr(builtins, target, None)
    if value is not None or target == "None":
        if isinstance(value, type) and issubclass(value, BaseException):
            return f"exceptions.html#{target}"
        if value is None or isinstance(value, bool):
            return f"constants.html#{target}"
        return f"{'stdtypes' if target in _BUILTIN_TYPES else 'functions'}.html#{target}"
    parts = target.split(".")
    if parts[0] not in sys.stdlib_module_names:
        return None
    # The longest part that is a module has a page; the rest must be there.
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            value = importlib.import_module(module)
            for name in parts[length:]:
                value = getattr(value, name)
        except (ImportError, AttributeError):
            continue
        anchor = target if length < len(parts) else f"module-{module}"
        return f"{module}.html#{anchor}"
    return None


_PRIVATE_PARAMETER = re.compile(r", _\w+=[^,()]*(?=[,)])")
_PRIVATE_DEFAULT = re.compile(r"=_\w+")
# Only the library makes objects of these classes.
_MADE_BY_LIBRARY = {
    "persistcoll.CollectionInfo",
    "persistcoll.Consumer",
    "persistcoll.Message",
    "persistcoll.MessageEvent",
    "persistcoll.MessageInfo",
    "persistcoll.Stats",
    "persistcoll.TopicLock",
}


def public_signature(app, what, name, obj, options, signature, return_annotation):
    """Leave out of a signature what no program passes: private parameters, and names of private defaults."""
    if name in _MADE_BY_LIBRARY:
        return "", None
    if not signature:
        return None
    return _PRIVATE_DEFAULT.sub("=...", _PRIVATE_PARAMETER.sub("", signature)), return_annotation


def public_types(app, domain, objtype, contentnode):
    """Leave the types of the same parameters out, and that of a function which returns nothing."""
    signature = contentnode.parent[0]
    name = f"{signature.get('module')}.{signature.get('fullname')}"
    types = app.env.temp_data.get("annotations", {}).get(name, {})
    for parameter, annotation in list(types.items()):
        if (
            name in _MADE_BY_LIBRARY
            or parameter.startswith("_")
            or (parameter, annotation) == ("return", "None")
        ):
            del types[parameter]


def changelog(app, docname, source):
    """Show CHANGELOG.md as the page ``reference/changelog``, with its headings, links and literals."""
    if docname != "reference/changelog":
        return
    text = (DOCS.parent / "CHANGELOG.md").read_text("utf-8")
    text = re.sub(r"`([^`\n]+)`", r"``\1``", text)
    text = re.sub(r"(?<!\])\[([^\]\n]+)\]\(([^)\n]+)\)", r"`\1 <\2>`__", text)
    lines = []
    for line in text.splitlines():
        level, _, title = line.partition(" ")
        if level in ("#", "##", "###"):
            title = title.strip("[]")
            lines += [title, {"#": "=", "##": "-", "###": "~"}[level] * len(title)]
        else:
            lines.append(line)
    source[0] = "\n".join(lines) + "\n"
    app.env.note_dependency(str(DOCS.parent / "CHANGELOG.md"))


_NAME_OF_TEST = re.compile(r'(?<=<span class="pre">)[\w/]*test_[\w/]+')


def breakable_tests(app, pagename, templatename, context, doctree):
    """Let a browser break the long names of tests, which otherwise push columns of tables off the page."""
    if "body" in context:
        context["body"] = _NAME_OF_TEST.sub(
            lambda match: re.sub("[/_]", r"\g<0><wbr>", match[0]), context["body"]
        )


class Picture(Directive):
    """Draw a picture of ``docs/pictures``, whose name is the argument."""

    required_arguments = 1

    def run(self):
        """Return the picture; the page is read anew at each build, because any module may change it."""
        self.state.document.settings.env.note_reread()
        name = self.arguments[0]
        if name not in PICTURES:
            raise self.error(f"there is no picture {name!r}")
        drawing = PICTURES[name]()
        style = f"overflow-x: auto; max-width: {max(drawing.width, 560):g}px; margin: 1.2em auto"
        box = f'<div class="picture" role="region" aria-label="{drawing.title}" tabindex="0" style="{style}">'
        return [nodes.raw("", f"{box}\n{drawing.svg(in_page=True)}\n</div>", format="html")]


def setup(app):
    """Connect them."""
    app.connect("missing-reference", link_to_standard_library)
    app.connect("missing-reference", link_to_home)  # second: there is a Stats.bytes
    app.connect("source-read", changelog)
    app.connect("autodoc-process-signature", public_signature)
    app.connect("object-description-transform", public_types, priority=400)  # before the types are shown
    app.connect("html-page-context", breakable_tests)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
