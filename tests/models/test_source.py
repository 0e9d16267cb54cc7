import logging

import httpx
import pytest
import yaml
from huggingface_hub import errors

import tdaexp.models.source as hub
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError


def failing(kind):
    def download(name, file, revision=None):
        if issubclass(kind, errors.HfHubHTTPError):
            raise kind(
                "a long story\nin many lines",
                response=httpx.Response(403, request=httpx.Request("GET", "http://hub")),
            )
        raise kind("a long story\nin many lines")

    return download


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "gated; accept its terms"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.RevisionNotFoundError, r"no such revision; check model\.revision"),
        (errors.LocalEntryNotFoundError, r"cannot be reached .* set model\.pretrained=FOLDER"),
        (errors.EntryNotFoundError, r"no config\.json"),
        (errors.HfHubHTTPError, r"a long story; set model\.pretrained=FOLDER"),
        (OSError, r"a long story; set model\.pretrained=FOLDER"),
    ],
)
def test_each_refusal_of_the_hub_is_one_line(monkeypatch, kind, message):
    monkeypatch.setattr(hub, "hf_hub_download", failing(kind))
    with pytest.raises(UserError, match=message) as error:
        Pretrained("owner/model", revision="v2").load()
    assert "\n" not in str(error.value) and "model.pretrained=owner/model (revision v2)" in str(error.value)


def test_without_network_the_message_names_the_way_out():
    # The whole test run is offline (HF_HUB_OFFLINE), which the hub's client reports like an absent network.
    with pytest.raises(UserError, match=r"cannot be reached and .* set model\.pretrained=FOLDER"):
        Pretrained("tdaexp-no-such-owner/no-such-model").load()


def test_the_hubs_retries_are_not_shown(monkeypatch, caplog):
    def download(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 5/5].")
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(UserError):
        hub.locate("owner/model", None, "model.pretrained")
    assert not caplog.records


def test_a_hub_models_identity_is_its_commit(monkeypatch):
    commits = {None: "1" * 40, "main": "1" * 40, "v2": "2" * 40}
    monkeypatch.setattr(
        hub,
        "hf_hub_download",
        lambda name, file, revision=None: f"/cache/snapshots/{commits[revision]}/{file}",
    )
    source = hub.locate("owner/model", "v2", "model.pretrained")
    assert (source.name, source.revision) == ("owner/model", "2" * 40)
    assert hub.locate("owner/model", None, "x") == hub.locate("owner/model", "main", "x") != source
    assert hub.locate("other/model", "v2", "x").identity != source.identity


@pytest.mark.parametrize(
    "name", ["./folder", "a/b/c", "/nowhere/model", "../model", "owner/mo del", "nosuch", "~/nothing-here"]
)
def test_what_cannot_be_a_hub_id_never_reaches_the_hub(monkeypatch, name):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        hub.locate(name, None, "model.pretrained")


def test_shipped_hub_configs(repository):
    wanted = {
        "olmo1b": "amd/AMD-OLMo-1B-SFT",
        "eurollm1b7": "utter-project/EuroLLM-1.7B",
        "bloom560m": "bigscience/bloom-560m",
        "bloomz560m": "bigscience/bloomz-560m",
        "pythia2b8": "EleutherAI/pythia-2.8b",
        "dolly3b": "databricks/dolly-v2-3b",
    }
    for name, hub_id in wanted.items():
        text = (repository / "conf" / "model" / f"{name}.yaml").read_text()
        values = yaml.safe_load(text)
        assert text.startswith("# ") and values.pop("_target_") == "tdaexp.models.pretrained.Pretrained"
        config = Pretrained(**values)
        assert (config.name, config.pretrained, config.trust_remote_code) == (name, hub_id, False)
