"""Self-contained pages: one HTML file that opens anywhere and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import xarray as xr
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tdaexp.report.shading import LEVELS


@dataclass(frozen=True)
class Picture:
    """A figure: file name without suffix, caption, and its SVG."""

    name: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """The picture as a data URI: ids inside one SVG cannot meet those of another."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def page(template: str, stores: dict[str, xr.Dataset], **values: Any) -> str:
    """Render a template of `report/templates`; `stores` are those that its provenance tells of, by label."""
    environment = Environment(
        loader=PackageLoader("tdaexp.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    provenance = [_provenance(label, store) for label, store in stores.items()]
    return environment.get_template(template).render(levels=LEVELS, provenance=provenance, **values)


def _provenance(label: str, dataset: xr.Dataset) -> dict[str, Any]:
    """Where a store came from: its plain attributes, package versions, and the configuration as YAML."""
    special = ("config", "choices", "versions", "cost")
    plain = {key: value for key, value in dataset.attrs.items() if key not in special and value is not None}
    versions = dataset.attrs.get("versions", {})
    config = dataset.attrs.get("config")
    return {
        "label": label,
        "facts": plain,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "config": "" if config is None else yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }
