"""Frozen models served by real engines: their replies are transformers', whatever else is asked, and after a
replica has died."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import private_cluster, small_base
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from actors.classifier_server import ClassifierServer
from cluster.model_client import ModelClient
from cluster.models import ModelPool, spawn_models
from cluster.placement import plan
from cluster.site import Site
from cluster.spawn import wait_ready
from configs.bound import bind
from configs.kinds.models import ModelOptions
from configs.load import load_config
from lab.tokenizer import make_tokenizer
from rewards.model_calls import GenerateRequest, Model, TextOrPair

pytestmark = pytest.mark.engine

TEXTS: tuple[TextOrPair, ...] = (
    "3 + 4 = 7",
    ("3 + 4", "= 8"),
    (("user", "3 + 4 ?"), ("assistant", "$ 3 + 4 = 7 => 7 $")),
    *(" ".join(str(number) for number in range(length)) for length in range(2, 40)),
)
LIMIT = 64


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with private_cluster():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, a classifier of three labels and an embedder of random weights."""
    root = tmp_path_factory.mktemp("models")
    base = small_base(root / "base", tied=False)
    torch.manual_seed(2)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    tokenizer = make_tokenizer()
    embedder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=LIMIT,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    made = {"base": base, "classifier": str(root / "classifier"), "embedder": str(root / "embedder")}
    for name, model in (("classifier", classifier), ("embedder", embedder)):
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


class Served:
    """Models started as a run starts them, with one loop for all of their calls."""

    def __init__(self, folders: dict[str, str], log_dir: Path) -> None:
        small = f"kv_cache_bytes: {32 * 2**20}, max_num_seqs: 16, max_model_len: {LIMIT}"
        entries = [
            f"models.base={{path: {folders['base']}, {small}}}",
            f"models.classifier={{path: {folders['classifier']}, task: classify, {small}}}",
            f"models.embedder={{path: {folders['embedder']}, task: embed, pooling: mean, {small}}}",
        ]
        scorers = [
            "scorers.r={kind: reward_model, model: classifier}",
            "scorers.j={kind: judge, model: base}",
            "scorers.p={kind: partition, equivalence: embedding, over: all, model: embedder}",
        ]
        run = bind(load_config("debug", [*entries, *scorers, "cluster.restart_backoff_s=0.1"]))
        assert run.used_models() == {"base", "classifier", "embedder"}
        self.events: list[tuple[str, str]] = []
        self.site = Site(
            run=run,
            placement=plan(run, "cpu"),
            group=None,
            log_dir=log_dir,
            report=lambda kind, actor, **fields: self.events.append((kind, actor)),
        )
        self.loop = asyncio.new_event_loop()
        self.pools: dict[str, ModelPool] = spawn_models(self.site)
        self.run(wait_ready([replica for pool in self.pools.values() for replica in pool.replicas], 300.0))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 300.0))

    def model(self, name: str) -> Model:
        return self.pools[name].for_scorers


@pytest.fixture(scope="module")
def served(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(folders, tmp_path_factory.mktemp("logs"))
    yield found
    for pool in found.pools.values():
        for replica in pool.replicas:
            replica.kill()
    found.loop.close()


def ids_of(text: TextOrPair, tokenizer: Any) -> list[int]:
    """The whole input in tokens, by transformers' own calls."""
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"])
    if isinstance(text[0], str):
        return list(tokenizer(*text)["input_ids"])
    chat = [{"role": role, "content": content} for role, content in text]
    return list(tokenizer.apply_chat_template(chat, return_dict=False))


def logits_of(model: Any, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        return list(model(torch.tensor([ids])).logits[0].tolist())


def test_logits_are_those_of_transformers(served: Served, folders: dict[str, str]) -> None:
    """Texts, pairs and chats; the same bits alone as among others."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["classifier"])
    tokenizer = AutoTokenizer.from_pretrained(folders["classifier"])
    together = served.run(served.model("classifier").classify(TEXTS))
    alone = [served.run(served.model("classifier").classify([text]))[0] for text in TEXTS[:6]]
    assert alone == together[:6]
    for text, reply in zip(TEXTS, together, strict=True):
        ids = ids_of(text, tokenizer)
        assert reply.logits == pytest.approx(logits_of(model, ids), abs=1e-5)
        assert (reply.num_tokens, reply.was_cut) == (len(ids), False)


def test_what_is_too_long_is_cut_where_asked_and_counted(served: Served, folders: dict[str, str]) -> None:
    """The logits are those of what is left; a chat keeps its first token; refuse names the lengths."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["classifier"])
    tokenizer = AutoTokenizer.from_pretrained(folders["classifier"])
    text = " ".join(str(number) for number in range(LIMIT + 20))
    chat = (("user", text), ("assistant", "7"))
    ids, chat_ids = ids_of(text, tokenizer), ids_of(chat, tokenizer)
    for over_long, kept in (
        ("cut_left", (ids[-LIMIT:], [chat_ids[0], *chat_ids[-LIMIT + 1 :]])),
        ("cut_right", (ids[:LIMIT], chat_ids[:LIMIT])),
    ):
        replies = served.run(served.model("classifier").classify([text, chat, "1 2"], over_long))  # type: ignore[arg-type]
        assert [(reply.num_tokens, reply.was_cut) for reply in replies] == [
            (LIMIT, True),
            (LIMIT, True),
            (2, False),
        ]
        for reply, left in zip(replies[:2], kept, strict=True):
            assert reply.logits == pytest.approx(logits_of(model, left), abs=1e-5)
    with pytest.raises(ValueError, match=f"max_model_len = {LIMIT} tokens, got {LIMIT + 20}"):
        served.run(served.model("classifier").classify(["1", text], "refuse"))
    with pytest.raises(ValueError, match="has task classify, and cannot generate"):
        served.run(served.model("classifier").generate([GenerateRequest(prompt=(5,), max_tokens=1)]))


def test_embeddings_are_the_mean_over_tokens(served: Served, folders: dict[str, str]) -> None:
    """As sentence-transformers pools, before its norm."""
    model, tokenizer = (
        AutoModel.from_pretrained(folders["embedder"]),
        AutoTokenizer.from_pretrained(folders["embedder"]),
    )
    texts = [text for text in TEXTS if isinstance(text, str)]
    for text, reply in zip(texts, served.run(served.model("embedder").embed(texts)), strict=True):
        ids = ids_of(text, tokenizer)
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).last_hidden_state[0].mean(0).tolist()
        assert reply.vector == pytest.approx(expected, abs=1e-5) and reply.num_tokens == len(ids)


def test_generation_repeats_by_its_seed(served: Served, folders: dict[str, str]) -> None:
    """In any company; temperature 0 is transformers' greedy text; too long a prompt is refused."""
    chat = (("user", "3 + 4 ?"),)
    requests = [
        GenerateRequest(prompt=chat, max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2, 3, 1)
    ]
    greedy = GenerateRequest(prompt=chat, max_tokens=12)
    model = served.model("base")
    first = served.run(model.generate([*requests, greedy]))
    again = served.run(model.generate([greedy, *requests[::-1]]))
    assert first[:4] == again[:0:-1] and first[4] == again[0]
    assert first[0] == first[3] and len({reply.token_ids for reply in first[:3]}) == 3
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3 + 4 ?"}], add_generation_prompt=True, return_dict=False
    )
    assert first[4].num_prompt_tokens == len(given)
    plain = AutoModelForCausalLM.from_pretrained(folders["base"])
    whole = plain.generate(torch.tensor([given]), max_new_tokens=12, do_sample=False)[0].tolist()
    found = whole[len(given) :]
    assert list(first[4].token_ids) == found
    assert first[4].text == tokenizer.decode(found, skip_special_tokens=True)
    with pytest.raises(ValueError, match=rf"max_model_len = {LIMIT} tokens, got 60 \+ 12"):
        served.run(model.generate([GenerateRequest(prompt=tuple(range(8, 68)), max_tokens=12)]))


def test_a_replica_that_dies_is_found_again(served: Served) -> None:
    """By scorers (through its Ray name) and by the driver; the call that it died under is repeated."""
    pool = served.pools["classifier"]

    async def work() -> None:
        watching = asyncio.ensure_future(pool.replicas[0].watch())
        before = await pool.for_scorers.classify(TEXTS)
        calls = [
            asyncio.ensure_future(client.classify(TEXTS)) for client in (pool.for_scorers, pool.for_driver)
        ]
        await asyncio.sleep(0)
        pool.replicas[0].current.kill(force=True)
        assert [await call for call in calls] == [before, before]
        assert ("actor_replaced", "model-classifier-0") in served.events
        assert isinstance(pool.for_scorers, ModelClient)
        copy: ModelClient = pool.for_scorers.__reduce__()[0](*pool.for_scorers.__reduce__()[1])
        assert await copy.classify(TEXTS) == before
        watching.cancel()

    served.run(work())


def test_transformers_classifies_alike(folders: dict[str, str], tmp_path: Path) -> None:
    """The other backend, without an engine; a folder without a head is refused."""
    options = ModelOptions(
        path=folders["classifier"], task="classify", backend="transformers", max_model_len=LIMIT
    )
    server = ClassifierServer(options, "cpu")
    model = AutoModelForSequenceClassification.from_pretrained(folders["classifier"])
    tokenizer = AutoTokenizer.from_pretrained(folders["classifier"])
    replies = asyncio.run(server.classify("call", TEXTS, "cut_left"))
    for text, reply in zip(TEXTS, replies, strict=True):
        assert reply.logits == pytest.approx(logits_of(model, ids_of(text, tokenizer)), abs=1e-6)
    cut = asyncio.run(server.classify("call", ["1 " * 90], "cut_right"))[0]
    assert (cut.num_tokens, cut.was_cut) == (LIMIT, True)
    with pytest.raises(ValueError, match=r"a sequence classifier, got a folder without score\.weight"):
        ClassifierServer(ModelOptions(path=folders["base"], task="classify", backend="transformers"), "cpu")
    config = json.loads(Path(folders["classifier"], "config.json").read_text())
    assert config["max_position_embeddings"] == 256
    with pytest.raises(ValueError, match="max_model_len must be at most 256"):
        ClassifierServer(
            ModelOptions(
                path=folders["classifier"], task="classify", backend="transformers", max_model_len=300
            ),
            "cpu",
        )
