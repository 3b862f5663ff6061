"""The four files of a checkout -> the params of one customer, each value with where it comes from.

params.yaml has the `defaults` of the team and the `customers`, policy.yaml the use cases,
devices.yaml the devices, finance.yaml budget, prices and assumptions. What none of them sets has
a default in `turbo_vaed.config.schema`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from turbo_vaed.config.devices import DeviceProfile, parse_profile
from turbo_vaed.config.explain import explain, nearest
from turbo_vaed.config.schema import GateParams, Params, PriceParams, check_customer_name
from turbo_vaed.config.yaml_file import Keys, YamlFile, read_yaml_file
from turbo_vaed.errors import UserError

T = TypeVar("T")
PARAMS, POLICY, DEVICES, FINANCE = FILES = (
    "params.yaml",
    "policy.yaml",
    "devices.yaml",
    "finance.yaml",
)
OWN_KEYS = {
    PARAMS: ("defaults", "customers"),
    POLICY: ("use_cases",),
    DEVICES: ("devices",),
    FINANCE: ("budget", "prices", "roi"),
}
"""The top-level keys of each file."""
BUILT_IN = "built-in default"
_PARAMS = TypeAdapter(Params)
_NULLABLE = ("schedule",)
"""A mapping that a later layer may take away."""


@dataclass(frozen=True, kw_only=True)
class ConfigFiles:
    """The files, read."""

    params: YamlFile
    policy: YamlFile
    devices: YamlFile
    finance: YamlFile

    @property
    def customers(self) -> Mapping[str, Any]:
        """What params.yaml says of each customer."""
        found = self.params.document.get("customers") or {}
        if not isinstance(found, Mapping):
            raise UserError(f"{self.params.where(('customers',))} must be a mapping")
        return found

    @property
    def use_cases(self) -> Mapping[str, Any]:
        """Limits by use case."""
        found = self.policy.document.get("use_cases") or {}
        if not isinstance(found, Mapping):
            raise UserError(f"{self.policy.where(('use_cases',))} must be a mapping")
        return found

    @property
    def profiles(self) -> Mapping[str, Any]:
        """Device profiles by name, as they stand in the file; this machine where it names none."""
        found = self.devices.document.get("devices") or {"host": {"kind": "host"}}
        if not isinstance(found, Mapping):
            raise UserError(f"{self.devices.where(('devices',))} must be a mapping")
        return found


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Values that lie over those of the layers before: what stands at `at` in a file, for the
    params below `under`."""

    file: YamlFile
    at: Keys
    under: Keys = ()

    def inside(self, keys: Keys) -> Keys | None:
        """Where the params at `keys` stand in the file; None: not in this layer."""
        if keys[: len(self.under)] != self.under:
            return None
        return (*self.at, *keys[len(self.under) :])

    def where(self, keys: Keys) -> str | None:
        """The file and line that give the params at `keys` their value; None: not this layer."""
        inside = self.inside(keys)
        return None if inside is None or self.file.line(inside) is None else self.file.where(inside)

    def decides(self, keys: Keys) -> bool:
        """Whether it gives that value, or has a list around it, which replaces earlier layers'."""
        inside = self.inside(keys) or ()
        lists = (inside[:end] for end in range(len(self.at) + 1, len(inside)))
        return self.where(keys) is not None or any(map(self._has_list, lists))

    def _has_list(self, keys: Keys) -> bool:
        try:
            return isinstance(self.file.get(keys), list)
        except KeyError:
            return False


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A customer's params, merged and not validated yet."""

    customer: str
    values: Mapping[str, Any]
    layers: tuple[Layer, ...]
    """The last one that has a key gives its value."""

    def origin(self, keys: Keys) -> str:
        """Where the value at `keys` comes from: `params.yaml:12 defaults.distill.steps`."""
        return self._layer(keys).where(keys) or BUILT_IN

    def place(self, keys: Keys) -> str:
        """As `origin`, for a message: a missing key is named by the list that lacks it, or by the
        customer's own place."""
        layer = self._layer(keys)
        return layer.file.where(layer.inside(keys) or layer.at)

    def _layer(self, keys: Keys) -> Layer:
        """The last one that decides; the customer's own where none does."""
        return next((one for one in reversed(self.layers) if one.decides(keys)), self.layers[-1])

    def params(self) -> Params:
        """Validated and typed.

        Raises:
            UserError: with a line per key: where it stands, what was found, what is allowed.
        """
        try:
            return _PARAMS.validate_python(dict(self.values))
        except ValidationError as error:
            lines = explain(error, Params, self.place).replace("\n", "\n  ")
            raise UserError(f"the params of {self.customer} are not valid:\n  {lines}") from None


def read(root: Path) -> ConfigFiles:
    """The four files of the checkout at `root`.

    Raises:
        UserError: one is no YAML, holds a key twice, or a key that belongs to another file.
    """
    found = ConfigFiles(
        params=read_yaml_file(root / PARAMS),
        policy=read_yaml_file(root / POLICY, optional=True),
        devices=read_yaml_file(root / DEVICES, optional=True),
        finance=read_yaml_file(root / FINANCE, optional=True),
    )
    for file in (found.params, found.policy, found.devices, found.finance):
        for key in file.document:
            if key not in OWN_KEYS[file.name]:
                raise UserError(_misplaced(file, (key,), OWN_KEYS[file.name]))
    defaults = found.params.document.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        raise UserError(f"{found.params.where(('defaults',))} must be a mapping")
    for key in OWN_KEYS[FINANCE]:
        if key in defaults:
            raise UserError(_misplaced(found.params, ("defaults", key), ()))
    for key, owner in {"thresholds": POLICY, "device": DEVICES}.items():
        if key in defaults:
            raise UserError(
                f"{found.params.where(('defaults', key))} would have no effect: write it in "
                f"{owner} for all customers, or below customers.NAME.{key} for one"
            )
    return found


def load(root: Path, customer: str) -> Params:
    """The params of one customer of the checkout at `root`.

    Raises:
        UserError: an unknown customer, a file or a value that is not valid.
    """
    return resolve(read(root), customer).params()


def resolve(files: ConfigFiles, customer: str) -> Resolved:
    """Built-in defaults, the files and the customer's own overrides, merged.

    Raises:
        UserError: no such customer, use case or device, or a section that is no mapping.
    """
    check_customer_name(customer)
    if customer not in files.customers:
        raise UserError(
            f"unknown customer {customer!r}; "
            f"known: {', '.join(sorted(map(str, files.customers))) or 'none'}; "
            f"add it with: turbo-vaed customer add {customer} --source DIR --use-case USE"
        )
    own = Layer(file=files.params, at=("customers", customer))
    team = _team_layers(files)
    named = _merged((*team, own), but=("thresholds", "device"))
    use_case = named.get("use_case")
    asker = Resolved(customer=customer, values=named, layers=(*team, own))
    if not isinstance(use_case, str) or not isinstance(files.use_cases.get(use_case), Mapping):
        raise UserError(
            f"{asker.place(('use_case',))} is {use_case!r}; "
            f"allowed: {', '.join(files.use_cases) or 'none, for policy.yaml has no use_cases'}"
        )
    gate = named["gate"] if isinstance(named["gate"], Mapping) else {}
    device = gate.get("device")
    named_profile = _named_profile(files, device, asker.place(("gate", "device")))
    layers = (
        *team,
        Layer(file=files.policy, at=("use_cases", use_case), under=("thresholds",)),
        Layer(file=files.devices, at=("devices", str(device)), under=("device",)),
        own,
    )
    values = _merged(layers)
    values["thresholds"] = _with_reasons(files, customer, use_case, values["thresholds"])
    values["device"] = {**named_profile, **values.get("device", {}), "name": device}
    for key in ("name", "kind"):
        if layers[-1].where(("device", key)):
            raise UserError(
                f"{layers[-1].where(('device', key))}: gate.device names the device; a customer "
                "overrides other keys of its profile only"
            )
    return Resolved(customer=customer, values=values, layers=layers)


def team_gate(files: ConfigFiles) -> GateParams:
    """How packages are measured unless a customer overrides it.

    Raises:
        UserError: it is not valid.
    """
    return _team_section(files, "gate", GateParams)


def team_prices(files: ConfigFiles) -> PriceParams:
    """The prices of finance.yaml, which a customer may override.

    Raises:
        UserError: they are not valid.
    """
    return _team_section(files, "prices", PriceParams)


def _team_section(files: ConfigFiles, name: str, kind: type[T]) -> T:
    layers = _team_layers(files)
    found = Resolved(customer="defaults", values=_merged(layers), layers=layers)
    try:
        return TypeAdapter(kind).validate_python(found.values[name])
    except ValidationError as error:
        raise UserError(explain(error, kind, lambda keys: found.place((name, *keys)))) from None


def profile(files: ConfigFiles, name: object) -> DeviceProfile:
    """The profile of a device.

    Raises:
        UserError: there is none of that name, or it is not valid.
    """
    return parse_profile(
        _named_profile(files, name, files.devices.name),
        lambda keys: files.devices.where(("devices", str(name), *keys)),
    )


@functools.cache
def built_in() -> Mapping[str, Any]:
    """The defaults of the code, as mappings and lists."""
    return {
        field.name: plain(field.default)
        for field in dataclasses.fields(Params)
        if field.default is not dataclasses.MISSING
    }


def plain(value: Any) -> Any:
    """A dataclass as mappings, lists and scalars, as YAML would hold it; amounts stay Decimal."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The values in nested mappings, and in lists of mappings, each with the keys to it."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, (*keys, key))
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            yield from leaves(one, (*keys, number))
    else:
        yield keys, value


def scalars(value: Any) -> Any:
    """Such mappings and lists with amounts as text, the same text for the same amount."""
    if isinstance(value, Mapping):
        return {key: scalars(one) for key, one in value.items()}
    if isinstance(value, list):
        return [scalars(one) for one in value]
    return format(value.normalize(), "f") if isinstance(value, Decimal) else value


def _team_layers(files: ConfigFiles) -> tuple[Layer, ...]:
    return (
        Layer(file=files.finance, at=()),
        Layer(file=files.params, at=("defaults",)),
    )


def _merged(layers: tuple[Layer, ...], but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of all layers over the built-in defaults, without the keys in `but`."""
    values: dict[str, Any] = dict(built_in())
    for layer in layers:
        try:
            found = layer.file.get(layer.at)
        except KeyError:
            continue
        if found is None and layer.at == ("defaults",):
            continue
        for key in reversed(layer.under):
            found = {key: found}
        values = _merge(values, found, (), layer)
        values = {key: value for key, value in values.items() if key not in but}
    return values


def _merge(base: Any, over: Any, keys: Keys, layer: Layer) -> dict[str, Any]:
    if not isinstance(over, Mapping):
        place = layer.file.where((*layer.at, *keys[len(layer.under) :]))
        raise UserError(f"{place} must be a mapping, found {over!r}")
    merged = dict(base)
    for key, value in over.items():
        if isinstance(base.get(key), Mapping) and not (value is None and (*keys, key) == _NULLABLE):
            merged[key] = _merge(base[key], value, (*keys, key), layer)
        else:
            merged[key] = value
    return merged


def _with_reasons(
    files: ConfigFiles, customer: str, use_case: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    """A use case with a customer's own limits; the reason of an old limit is none of a new one.

    Raises:
        UserError: it would be promoted without the person whom the use case asks for.
    """
    policy, own = files.use_cases[use_case], files.customers[customer].get("thresholds", {})
    where = files.params.where(("customers", customer, "thresholds", "needs_approval"))
    approval = found.get("needs_approval")
    if policy.get("needs_approval") is True and approval is not True:
        raise UserError(
            f"{where} is {approval!r}; {use_case} is never promoted without a "
            "person's approval: leave it out, or take another use_case"
        )
    reasons, given = found.get("rationale"), own.get("rationale") or {}
    if not isinstance(reasons, Mapping) or not isinstance(given, Mapping):
        return dict(found)  # which is no use case
    reasons = dict(reasons)
    for name in reasons.keys() & own.keys() - given.keys():
        if own[name] != policy.get(name):
            reasons[name] = (
                f"{customer} asks for it; {use_case} asks for {policy.get(name)}: {reasons[name]}"
            )
    return {**found, "rationale": reasons}


def _named_profile(files: ConfigFiles, name: object, where: str) -> dict[str, Any]:
    found = files.profiles.get(name) if isinstance(name, str) else None
    if not isinstance(found, Mapping):
        known = ", ".join(map(str, files.profiles))
        raise UserError(f"{where}: no profile of the device {name!r}; devices.yaml has: {known}")
    return {**found, "name": name}


def _misplaced(file: YamlFile, keys: Keys, allowed: tuple[str, ...]) -> str:
    """Why a top-level key is refused: it belongs to another file, or to none."""
    owner = next((name for name, own in OWN_KEYS.items() if keys[-1] in own), None)
    if owner is None:
        return f"{file.where(keys)}: {nearest(str(keys[-1]), allowed)}"
    return (
        f"{file.where(keys)} belongs in {owner}; "
        "turbo-vaed config migrate splits a params.yaml that has everything"
    )
