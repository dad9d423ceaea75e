"""Which HTTP request is which rpc: google.api.http rules and (tunesmith.v1.http) options, read from descriptors.

Called by transcoding to make routes, and by whoever describes them (openapi). Knows no message by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from gateway.http import templates
from gateway.http.profile import union_of
from gateway.http.reading import is_textual
from gateway.http.templates import Template
from tunesmith.v1 import options_pb2


@dataclass(frozen=True)
class Parameter:
    """A query parameter, header or path variable, and its field."""

    name: str
    """As the caller writes it."""
    path: tuple[FieldDescriptor, ...]
    """From the request down to the field."""

    @property
    def field(self) -> FieldDescriptor:
        """The field itself."""
        return self.path[-1]

    @property
    def dotted(self) -> str:
        """The field's path as text: `filter.name`."""
        return ".".join(field.name for field in self.path)


@dataclass(frozen=True)
class Binding:
    """One HTTP rule of an rpc."""

    verb: str
    """GET, POST, ..."""
    template: Template
    method: MethodDescriptor
    success_status: int
    body: str
    """"*": the whole request but for the path's fields; a field's name: that field; "": no body is read."""
    response_body: str
    """The field of the answer that is sent; "": the whole answer."""
    variables: tuple[Parameter, ...]
    """Given by the path, in the order of the template's variables."""
    query: tuple[Parameter, ...]
    headers: tuple[Parameter, ...]

    @property
    def rpc(self) -> str:
        """The rpc's path: /package.Service/Method."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def bindings(services: Sequence[ServiceDescriptor]) -> list[Binding]:
    """Returns every binding of every rpc, the more particular paths first.

    Raises:
        ValueError: A rule names a field that is not there, or does not follow the template grammar.
    """
    found = [
        _binding(method, rule)
        for service in services
        for method in service.methods
        for rule in _rules(method)
        if not method.client_streaming  # HTTP has no form for a stream of requests
    ]
    return sorted(found, key=lambda binding: binding.template.rank)


def _rules(method: MethodDescriptor) -> Iterator[HttpRule]:
    options = method.GetOptions()
    if options.HasExtension(annotations_pb2.http):
        rule = options.Extensions[annotations_pb2.http]
        yield rule
        yield from rule.additional_bindings


def _binding(method: MethodDescriptor, rule: HttpRule) -> Binding:
    request = method.input_type
    options = method.GetOptions().Extensions[options_pb2.http]
    verb, text = _verb(rule)
    template = templates.parse(text)
    variables = tuple(parameter(request, v.field, v.field) for v in template.variables)
    extra = tuple(parameter(request, bound.name, bound.field) for bound in options.query)
    taken = {variable.dotted for variable in variables} | {bound.dotted for bound in extra}
    if rule.body not in ("", "*"):
        taken.add(_named(request, rule.body).name)
    if rule.response_body:
        _named(method.output_type, rule.response_body)
    implied = () if rule.body == "*" else tuple(p for p in _leaves(request) if not _is_taken(p, taken))
    return Binding(
        verb=verb,
        template=template,
        method=method,
        success_status=options.success_status or 200,
        body=rule.body,
        response_body=rule.response_body,
        variables=variables,
        query=extra + implied,
        headers=tuple(parameter(request, bound.name, bound.field) for bound in options.headers),
    )


def _verb(rule: HttpRule) -> tuple[str, str]:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        raise ValueError("a google.api.http rule without a pattern")
    if kind == "custom":
        return rule.custom.kind.upper(), rule.custom.path
    return kind.upper(), getattr(rule, kind)


def parameter(request: Descriptor, name: str, field_path: str) -> Parameter:
    """Returns the parameter of that name for the field at the dotted path.

    Raises:
        ValueError: There is no such field, or one text cannot give its value.
    """
    descriptor: Descriptor | None = request
    path: list[FieldDescriptor] = []
    for part in field_path.split("."):
        if descriptor is None:
            raise ValueError(f"{request.full_name} has no field {field_path!r}")
        field = _named(descriptor, part)
        path.append(field)
        descriptor = field.message_type
    if not is_textual(path[-1]) or any(field.is_repeated for field in path[:-1]):
        raise ValueError(f"{request.full_name}: {field_path!r} cannot be a parameter")
    return Parameter(name, tuple(path))


def _named(descriptor: Descriptor, name: str) -> FieldDescriptor:
    if name not in descriptor.fields_by_name:
        raise ValueError(f"{descriptor.full_name} has no field {name!r}")
    return descriptor.fields_by_name[name]


def _leaves(descriptor: Descriptor, above: tuple[FieldDescriptor, ...] = ()) -> Iterator[Parameter]:
    """Yields a parameter for each field that one text can give, of nested messages too.

    Not of repeated messages, maps and tagged unions, nor of a type inside itself.
    """
    for field in descriptor.fields:
        path = (*above, field)
        if is_textual(field):
            yield Parameter(".".join(step.name for step in path), path)
        elif field.message_type is not None and not field.is_repeated:
            inside = [step.message_type for step in above] + [descriptor]
            if field.message_type not in inside and union_of(field.message_type) is None:
                yield from _leaves(field.message_type, path)


def _is_taken(leaf: Parameter, taken: set[str]) -> bool:
    return any(leaf.dotted == name or leaf.dotted.startswith(f"{name}.") for name in taken)
