"""Whether a dataset is good enough: Great Expectations over the manifest, with Data Docs.

Two suites: `files` looks at every row, and a row that fails a critical expectation of it is
quarantined; `dataset` then looks at what is left. Data Docs load their style sheets from a
network: offline they are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.errors import Fault

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class ManifestLimits:
    """What a file and a dataset must reach; pixels, seconds, shares in [0,1]."""

    min_seconds: float
    min_side: int
    max_black_share: float
    max_frozen_share: float
    min_good_videos: int
    min_good_share: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The outcome of one expectation; `paths` are the files that failed it."""

    name: str
    column: str
    severity: str
    success: bool
    observed: str
    expected: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """One expectation: what GE calls it, and how it reads to a person."""

    name: str
    kind: str
    column: str
    arguments: dict[str, Any]
    expected: str
    failing: str
    """Why a row is quarantined, with `{value}`."""
    severity: str = "critical"


def check_manifest(
    manifest: pd.DataFrame, limits: ManifestLimits, *, data_docs: Path
) -> tuple[pd.DataFrame, list[Expectation]]:
    """The manifest with the failing rows quarantined, and every expectation's outcome.

    Args:
        manifest: as `build_manifest` returns it, at least one row.
        limits: what must be reached.
        data_docs: a folder for the HTML; index.html in it is where to begin.

    Raises:
        Fault: Great Expectations could not evaluate an expectation.
    """
    facts = manifest[["path", "duplicate_of", "seconds", "black_share", "frozen_share", "phash"]]
    readable = manifest["error"].isna()
    facts = facts.assign(decodable=readable, short_side=manifest[["width", "height"]].min(axis=1))
    # What could not be read to its end is judged by `decodable` alone.
    measured = ["seconds", "short_side", "black_share", "frozen_share", "phash", "duplicate_of"]
    facts[measured] = facts[measured].where(readable)
    context = _context(data_docs)
    rules = _file_rules(limits)
    outcomes = _validate(context, "files", facts, rules)

    checked = manifest.copy()
    for rule, outcome in zip(rules, outcomes, strict=True):
        if rule.severity != "critical":
            continue
        rows = checked["path"].isin(outcome.paths) & (checked["status"] == "ok")
        for index in checked.index[rows]:
            value = facts.at[index, rule.column]
            checked.loc[index, ["status", "reason"]] = (
                "quarantined",
                rule.failing.format(value=value),
            )
    good = checked[["path"]].assign(good=(checked["status"] == "ok").astype("int64"))
    return checked, [*outcomes, *_validate(context, "dataset", good, _dataset_rules(limits))]


def _file_rules(limits: ManifestLimits) -> list[_Rule]:
    low, high = "min_value", "max_value"
    between = "ExpectColumnValuesToBeBetween"
    return [
        _Rule(
            name="file decodes", kind="ExpectColumnValuesToBeInSet", column="decodable",
            arguments={"value_set": [True]},
            expected="every file decodes as a video, to its end", failing="does not decode",
        ),
        _Rule(
            name="unique content", kind="ExpectColumnValuesToBeNull", column="duplicate_of",
            arguments={}, expected="no exact copy (same sha256)",
            failing="exact copy of {value}",
        ),
        _Rule(
            name="long enough", kind=between, column="seconds",
            arguments={low: limits.min_seconds}, expected=f"at least {limits.min_seconds:g} s",
            failing=f"{{value:.2f}} s long, at least {limits.min_seconds:g} s is needed",
        ),
        _Rule(
            name="large enough", kind=between, column="short_side",
            arguments={low: limits.min_side}, expected=f"at least {limits.min_side} px",
            failing=f"short side is {{value}} px, at least {limits.min_side} px is needed",
        ),
        _Rule(
            name="not black", kind=between, column="black_share",
            arguments={high: limits.max_black_share},
            expected=f"at most {limits.max_black_share:.0%} of the frames",
            failing=f"{{value:.0%}} of the frames are black, "
            f"at most {limits.max_black_share:.0%} is allowed",
        ),
        _Rule(
            name="not frozen", kind=between, column="frozen_share",
            arguments={high: limits.max_frozen_share},
            expected=f"at most {limits.max_frozen_share:.0%} of the frames",
            failing=f"{{value:.0%}} of the frames repeat the one before, "
            f"at most {limits.max_frozen_share:.0%} is allowed",
        ),
        _Rule(
            name="no look-alikes", kind="ExpectColumnValuesToBeUnique", column="phash",
            arguments={}, expected="no two files with the same perceptual hash",
            failing="looks like another file", severity="warning",
        ),
    ]  # fmt: skip


def _dataset_rules(limits: ManifestLimits) -> list[_Rule]:
    return [
        _Rule(
            name="good videos", kind="ExpectColumnSumToBeBetween", column="good",
            arguments={"min_value": limits.min_good_videos},
            expected=f"at least {limits.min_good_videos}", failing="",
        ),
        _Rule(
            name="good share", kind="ExpectColumnMeanToBeBetween", column="good",
            arguments={"min_value": limits.min_good_share},
            expected=f"at least {limits.min_good_share:.0%} of the files", failing="",
        ),
    ]  # fmt: skip


def _context(data_docs: Path) -> Any:
    """An ephemeral context that phones nobody, leaves nothing behind and writes to `data_docs`."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
    )

    context: Any = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
        ),
    )
    context.variables.progress_bars = {"globally": False}
    context.add_data_docs_site(
        "data_docs",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(data_docs),
            },
        },
    )
    context.data_sources.add_pandas("manifest")
    return context


def _validate(
    context: Any, name: str, frame: pd.DataFrame, rules: list[_Rule]
) -> list[Expectation]:
    """Run one suite over a frame with the column `path`; its Data Docs are written."""
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction

    expectations = [
        getattr(gx.expectations, r.kind)(
            column=r.column, severity=r.severity, meta={"rule": r.name}, **r.arguments
        )
        for r in rules
    ]
    asset = context.data_sources.get("manifest").add_dataframe_asset(name)
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=name,
            data=asset.add_batch_definition_whole_dataframe(name),
            suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations)),
        )
    )
    checkpoint: Any = gx.Checkpoint(
        name=name,
        validation_definitions=[validation],
        actions=[UpdateDataDocsAction(name="docs", site_names=["data_docs"])],
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["path"],
        },
    )
    run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    (report,) = run.run_results.values()
    by_rule = {r.expectation_config.meta["rule"]: r for r in report.results}
    return [_outcome(rule, by_rule[rule.name]) for rule in rules]


def _outcome(rule: _Rule, result: Any) -> Expectation:
    if (result.exception_info or {}).get("raised_exception") or not result.result:
        raise Fault(f"Great Expectations could not evaluate {rule.name!r}: {result.exception_info}")
    found = result.result
    if "observed_value" in found:
        value = found["observed_value"]
        observed = f"{value:.0%}" if rule.kind == "ExpectColumnMeanToBeBetween" else f"{value}"
    else:
        observed = f"{found['unexpected_count']} of {found['element_count']} files fail"
    return Expectation(
        name=rule.name,
        column=rule.column,
        severity=rule.severity,
        success=bool(result.success),
        observed=observed,
        expected=rule.expected,
        paths=tuple(sorted(row["path"] for row in found.get("unexpected_index_list") or ())),
    )
