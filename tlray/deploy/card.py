"""The README.md beside a delivered model: what it is, how far it can be trusted, what it is not for."""

from typing import Any

KINDS = {
    "binary": "says which of two classes an image belongs to",
    "multiclass": "says which of {count} classes an image belongs to",
    "ordinal": "says which of {count} ordered classes an image belongs to",
    "multilabel": "says which of {count} findings an image shows; several may be there, or none",
}
COMPUTES_IN = "float32"
"""Arithmetic of every delivered model, whatever it was trained in."""
SHOWN = (
    "auroc", "accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity", "average_precision",
    "quadratic_kappa", "ece",
)  # fmt: skip


def model_card(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Markdown from `config.json` and `metrics.json` of a model folder. Source: Mitchell et al. 2019, arXiv:1810.03993."""
    return "\n\n".join(filter(None, [
        f"# {config['task']} with {config['backbone']}", _banner(config), _what(config), _figures(metrics), _chosen(config),
        _origin(config), _use(config), _limits(config),
    ])) + "\n"  # fmt: skip


def _code(text: Any) -> str:
    """Text of a user's that must not act as Markdown."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def _banner(config: dict[str, Any]) -> str:
    lines = list(config["banner"])
    if config["data"].get("phantom"):
        lines.insert(
            0, "PHANTOM DATA: these images were drawn by a generator and show no patient. This model knows nothing about real ones."
        )
    return "\n>\n".join(f"> **{line}**" for line in lines)


def _what(config: dict[str, Any]) -> str:
    count, colour = len(config["classes"]), "grey" if config["channels"] == 1 else "colour"
    names = "\n".join(f"{index}. {_code(name)}" for index, name in enumerate(config["classes"]))
    return (
        f"An image classifier that {KINDS[config['kind']].format(count=count)}. It takes {colour} images of {config['size']} x "
        f"{config['size']} pixels; `tlray predict` resizes files itself. Numbered as in its output:\n\n{names}"
    )


def _figures(metrics: dict[str, Any]) -> str:
    test, validation = metrics["test"] or {}, metrics["validation"] or {}
    rows = [
        f"| {name} | {_number(validation.get(name))} | {_interval(test.get(name))} |" for name in SHOWN if name in {**validation, **test}
    ]
    kinds = sorted({each["interval"] for each in test.values() if each.get("interval")})
    size = f"{metrics['parameters']:,} parameters, {metrics['megabytes']:.3g} MB, {metrics['ms_per_image']:.1f} ms per image"
    return (
        "## Figures\n\n| metric | validation | test |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        + (f"In brackets: {'; '.join(kinds)}. " if kinds else "The test split has not been opened. ")
        + f"The model was chosen on validation, so that column flatters it. {size} ({metrics['ms_per_image_how']})."
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(metric: dict[str, Any] | None) -> str:
    if not metric or metric["value"] is None:
        return ""
    low, high = metric.get("low"), metric.get("high")
    return f"{metric['value']:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _chosen(config: dict[str, Any]) -> str:
    training, threshold, rule = config["config"], config["threshold"], config["threshold_rule"]
    names = [name for name in ("unfreeze", "lr", "optimizer", "epochs", "seed") if name in training]
    settings = ", ".join(f"{name} {_code(training[name])}" for name in names)
    text = (
        f"## How it was chosen\n\nThe best epoch of all trials by {_code(training.get('monitor', 'the monitor'))} on the "
        f"validation split, delivered as it was then, not retrained ({settings}; all settings stand in `config.json`). "
        f"{_arithmetic(training)}"
        f"Its probabilities are calibrated by a temperature of {config['temperature']:.3f} (Guo et al. 2017, arXiv:1706.04599)."
    )
    if isinstance(threshold, int | float):
        called = _code(config["classes"][1])
        text += f" The operating threshold ({rule}): {called} is called above a calibrated probability of {threshold:.3f}."
    elif threshold:
        text += f" Each finding has its own operating threshold ({rule}), in `config.json`."
    return text


def _arithmetic(training: dict[str, Any]) -> str:
    trained = training.get("precision", COMPUTES_IN)
    if trained == COMPUTES_IN:
        return ""
    return f"It was trained and chosen in {_code(trained)}; it computes in {COMPUTES_IN}, and so the figures above were made. "


def _origin(config: dict[str, Any]) -> str:
    def listed(facts: dict[str, Any] | None) -> str:
        plain = {name: value for name, value in (facts or {}).items() if isinstance(value, str | int | float)}
        return "\n".join(f"- {name}: {_code(value)}" for name, value in plain.items()) or "- none"

    return f"## Data\n\n{listed(config['data'])}\n\n## Weights it started from\n\n{listed(config['weights'])}"


def _use(config: dict[str, Any]) -> str:
    return (
        "## Use\n\n```sh\ntlray predict THIS_FOLDER image.png\n```\n\n```python\nfrom tlray.deploy.package import load_model\n"
        "from tlray.deploy.predict import predict_files\n\nmodel = load_model(\"THIS_FOLDER\")\n"
        "for answer in predict_files(model, [\"image.png\"]):\n    print(answer[\"class\"], answer[\"probability\"])\n```"
    )  # fmt: skip


def _limits(config: dict[str, Any]) -> str:
    phantom = " Its data were drawn, so its figures say nothing about any patient." if config["data"].get("phantom") else ""
    return (
        "## Intended use and limits\n\nFor research: to compare methods, and as a start for one's own data. **Not a medical "
        f"device**: it must not be used for diagnosis or treatment, and nobody has validated it clinically.{phantom} The figures "
        "hold for images that come from where the test images came from; another device, hospital, population or preparation can "
        "change them much. Check it on your own data with `tlray evaluate` first. It answers for any picture, also for one that "
        "shows nothing it was trained on."
    )
