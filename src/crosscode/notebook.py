"""A run as an object, for a notebook: its coder, models and data, where latents fire, and what they do to a model.

    run = crosscode.open_run("runs/feb_diffing_jumprelu")
    print(run.latents("The capital of France is"))
    print(run.generate("The capital of France is", model="tuned", steer={784: 10.0}))

Shapes: S tokens of a text, N of them kept, L latents, M models, P hookpoints, D width, W tokens of a window.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.checks import at_least, at_most, count, one_of
from crosscode.data import Dataloader, Harvester, LanguageModel, TokenSequence
from crosscode.data.language_model import Edit, check_ids, one_at_a_time, short_names, vocab_size_of
from crosscode.errors import BadInput
from crosscode.evaluation import Evaluation, Names, attribute_logits, names_of
from crosscode.evaluation.examples import texts_of
from crosscode.evaluation.logit_attribution import direct_sites
from crosscode.evaluation.splice import spliceable
from crosscode.files import rows_of
from crosscode.models import SparseCoder
from crosscode.report.saved import SavedRun, read_run
from crosscode.report.terminal import concordance
from crosscode.run.options import RunOptions
from crosscode.run.recipe import data_of
from crosscode.run_folder import CODER, CURVES, OPTIONS
from crosscode.saving import load
from crosscode.shapes import n_sites


@attrs.frozen(eq=False)
class TextLatents:
    """The latents of a text, token by token; printed, the strongest of each token.

    Attributes:
        tokens: what each token reads as.
        ids_S: token ids.
        values_SL: activations; 0 at tokens that are left out.
        left_out: the places of tokens that training leaves out, and why.
    """

    tokens: tuple[str, ...]
    ids_S: Int[Tensor, " S"]
    values_SL: Float[Tensor, "S L"]
    left_out: Mapping[int, str]

    def strongest(self, position: int, most: int = 5) -> list[tuple[int, float]]:
        """The latents that fire most on a token, with their activations, the strongest first."""
        values_k, latents_k = self.values_SL[position].topk(min(most, self.values_SL.shape[1]))
        return [(latent, value) for latent, value in zip(latents_k.tolist(), values_k.tolist()) if value > 0]

    def __str__(self) -> str:
        def said(position: int) -> str:
            fired = ", ".join(f"{latent} ({value:.3g})" for latent, value in self.strongest(position))
            return f"left out: {self.left_out[position]}" if position in self.left_out else fired or "nothing fires"

        return "\n".join(f"{s:4} {token!r:16} {said(s)}" for s, token in enumerate(self.tokens))


@attrs.frozen
class LatentExamples:
    """Where a latent fires, in context: its strongest activations, then some drawn at random; printed, a line each.

    Attributes:
        latent: its number.
        strengths: its activation at each example's token.
        lines: each example's token, in brackets, with the text around it.
    """

    latent: int
    strengths: tuple[float, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        if not self.lines:
            return f"latent {self.latent}: no examples were kept"
        shown = (f"{strength:8.3g} {line}" for strength, line in zip(self.strengths, self.lines))
        return "\n".join([f"latent {self.latent}", *shown])


@attrs.frozen
class LatentLogits:
    """What a latent, at its mean activation where it fires, adds to each model's logits (`LogitAttribution`).

    Attributes:
        latent: its number.
        raised, lowered: for each model, the tokens whose logits it changes most, and by how much.
    """

    latent: int
    raised: Mapping[str, tuple[tuple[str, float], ...]]
    lowered: Mapping[str, tuple[tuple[str, float], ...]]

    def __str__(self) -> str:
        lines = [f"latent {self.latent}"]
        for sign, changes in (("raises", self.raised), ("lowers", self.lowered)):
            for model, tokens in changes.items():
                lines.append(f"  {sign} in {model}: " + ", ".join(f"{text!r} {change:+.2f}" for text, change in tokens))
        return "\n".join(lines)


def open_run(folder: Path | str, classes: Sequence[type] = (), device: str | None = None) -> "Run":
    """A run's folder as an object. Nothing but its options is looked for; each part is read when it is asked for.

    Args:
        folder: of the run.
        classes: the user's own classes that its coder is made of; see `load`.
        device: where coder and models run; as in training if not given.

    Raises:
        BadInput: the folder is none of a run.
    """
    folder = Path(folder)
    if not (folder / OPTIONS).is_file():
        raise BadInput(f"{str(folder)!r} is no folder of a run: {OPTIONS} is missing.")
    return Run(folder, tuple(classes), device)


@attrs.frozen(eq=False, slots=False)
class Run:
    """A run; `open_run` makes it. Latents are counted from 0; models and hookpoints are called as in its report."""

    folder: Path
    classes: tuple[type, ...] = ()
    device: str | None = None

    @cached_property
    def options(self) -> RunOptions:
        """What was asked for; the device is the one that was given to `open_run`."""
        options = RunOptions.read(self.folder / OPTIONS)
        return options if self.device is None else attrs.evolve(options, device=self.device)

    @cached_property
    def coder(self) -> SparseCoder:
        """The trained coder, in eval mode."""
        return load(self.folder / CODER, self.classes, self.options.device)

    @property
    def models(self) -> Mapping[str, LanguageModel]:
        """The language models by name, in order; weights are read when first needed."""
        return dict(zip(short_names(self.options.language_models), self.options.language_models))

    @property
    def tokenizer(self) -> Any:
        """The models' tokenizer."""
        return self.options.language_models[0].tokenizer

    @cached_property
    def data(self) -> Dataloader:
        """The training data that the options stand for."""
        return data_of(self.coder, self.options, "train")

    @cached_property
    def held_out(self) -> Dataloader:
        """The held-out data that the options stand for."""
        return data_of(self.coder, self.options, "held_out")

    @property
    def curves(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`."""
        return [row for _, row in rows_of(self.folder / CURVES)]

    @cached_property
    def evaluation(self) -> Evaluation:
        """What was measured of the coder.

        Raises:
            BadInput: nothing was.
        """
        return Evaluation.load(self.folder)

    @cached_property
    def saved(self) -> SavedRun:
        """All that the report shows: beside the evaluation the null's, cut-offs and masks of exclusive latents."""
        return read_run(self.folder)

    @property
    def exclusivity(self) -> Mapping[str, Any] | None:
        """Cut-offs from the null, calls and rates of false positives; None without a null."""
        return self.saved.exclusivity

    def one_sided(self, model: str, most: int = 10) -> list[int]:
        """The latents that lean furthest towards one of the first two models, by their share of the decoder norms.

        Of those that fired on held-out text and are not shared or dedicated by construction; the furthest first.

        Raises:
            BadInput: no such model, the run has not been evaluated, or its coder does not write two models.
        """
        count("most", most)
        return self._towards(model, self.saved.eligible_L())[:most]

    def exclusive(self, model: str) -> list[int]:
        """The latents called exclusive to one of the first two models, the most one-sided first.

        By the null's cut-offs where the run has a null, else by the classical ones; confirmed by latent scaling.

        Raises:
            BadInput: as of `one_sided`.
        """
        m = _place("model", model, self._compared)
        return self._towards(model, self.saved.exclusive_L(m))

    @property
    def _compared(self) -> list[str]:
        if not self.saved.compares_models:
            raise BadInput(f"{str(self.folder)!r} is of a coder that does not write two models side by side.")
        return self.saved.models[:2]

    def _towards(self, model: str, of_L: Bool[Tensor, " L"]) -> list[int]:
        """Some latents, those first of whose decoder norms a model has most."""
        towards = _place("model", model, self._compared) == 1
        latents = of_L.nonzero()[:, 0]
        order = self.evaluation.latents["relative_norm_L"][latents].argsort(descending=towards, stable=True)
        return [int(latent) for latent in latents[order]]

    # --- where latents fire ------------------------------------------------------------------------------------------

    def latents(self, text: str | Sequence[str]) -> TextLatents | list[TextLatents]:
        """The latents of a text, or of each of several, read as a text of its own that begins as training's do.

        Args:
            text: at most as long as the models' context.

        Raises:
            BadInput: a text that is empty or too long, or a coder of other activations than the options stand for.
        """
        return self._latents_of(text) if isinstance(text, str) else [self._latents_of(each) for each in text]

    def examples(self, latent: int) -> LatentExamples:
        """Where a latent fires in held-out text, as the evaluation found it.

        Raises:
            BadInput: no such latent, or the run has not been evaluated.
        """
        self._check_latent(latent)
        found, texts = self.evaluation.examples, self.evaluation.texts
        if found is None or latent not in found.latents_E:
            return LatentExamples(latent, (), ())
        e = int((found.latents_E == latent).nonzero()[0])
        lines, strengths = [], []
        for tokens_W, strength in zip(found.tokens_EKW[e].tolist(), found.strength_EK()[e].tolist()):
            if strength > 0:
                read = ["" if id_ < 0 else texts.get(id_, f"[{id_}]") for id_ in tokens_W]
                at = found.before
                lines.append(concordance("".join(read[:at]), read[at], "".join(read[at + 1 :])))
                strengths.append(strength)
        return LatentExamples(latent, tuple(strengths), tuple(lines))

    def strongest(self, latent: int) -> float:
        """A latent's strongest activation on held-out text: the measure of what to steer by."""
        self._check_latent(latent)
        return float(self.evaluation.latents["max_L"][latent])

    # --- what latents do ---------------------------------------------------------------------------------------------

    def direction(self, latent: int, model: str | None = None, hookpoint: str | None = None) -> Float[Tensor, " D"]:
        """What a latent of activation 1 adds to a model's own (raw) activations at a hookpoint.

        Args:
            latent: its number.
            model: its name; may be left out if there is one.
            hookpoint: one that the coder writes; may be left out if there is one.

        Raises:
            BadInput: none of that name, or none was named of several.
        """
        self._check_latent(latent)
        m, p = _place("model", model, self._names.models), _place("hookpoint", hookpoint, self._names.written)
        decoder = self.coder.decoder
        sites = (len(self._names.models), len(self._names.written))
        with torch.no_grad():
            raw_XoDo = decoder.dense()[latent] / self.coder.scale_out_Xo[..., None]
        direction_D = raw_XoDo.reshape(*sites, decoder.d_out)[m, p]
        widths = decoder.widths_Xo
        return direction_D if widths is None else direction_D[: widths[m * sites[1] + p]]

    def logits_of(self, latent: int) -> LatentLogits:
        """The tokens that a latent makes likelier and less likely in each model, on the direct path.

        Raises:
            BadInput: no such latent, the run has not been evaluated, or it cannot be said of these models.
        """
        self._check_latent(latent)
        found, texts = self.evaluation.logits, dict(self.evaluation.texts)
        examples = self.evaluation.examples
        if found is not None and examples is not None and latent in examples.latents_E:
            e = int((examples.latents_E == latent).nonzero()[0])
        else:
            mean_E = self.evaluation.latents["mean_L"][[latent]].double()
            found, e = attribute_logits(self.coder, self.held_out, torch.tensor([latent]), mean_E), 0
        if found is None:
            raise BadInput("nothing that the coder writes reaches every model's logits by addition alone.")
        ids = {int(id_) for ids_EMK in (found.highest_EMK, found.lowest_EMK) for id_ in ids_EMK[e].flatten()}
        if unknown := sorted(ids - texts.keys()):
            texts |= texts_of(self.tokenizer, unknown)

        def told(ids_EMK: Tensor, change_EMK: Tensor) -> dict[str, tuple[tuple[str, float], ...]]:
            return {
                model: tuple((texts[id_], change) for id_, change in zip(ids_K.tolist(), change_K.tolist()))
                for model, ids_K, change_K in zip(self._names.models, ids_EMK[e], change_EMK[e])
            }

        return LatentLogits(latent, told(found.highest_EMK, found.rise_EMK), told(found.lowest_EMK, found.fall_EMK))

    def generate(
        self,
        prompt: str,
        model: str | None = None,
        steer: Mapping[int, float] = {},
        ablate: Sequence[int] = (),
        max_new_tokens: int = 20,
        hookpoint: str | None = None,
    ) -> str:
        """What a model writes on from a prompt, greedily, with latents added to its activations or taken from them.

        Args:
            prompt: begins as training's texts do.
            model: its name; may be left out if there is one.
            steer: what to add of some latents at every position: so many times their direction, in activations (so
                `{7: 2 * run.strongest(7)}`); negative numbers take away.
            ablate: latents whose own contribution is taken away: their activation there, on what all models make of
                the same tokens, times their direction. Tokens that training leaves out keep theirs.
            max_new_tokens: fewer come where the model ends the text, or its context does.
            hookpoint: where; by default the last one of a residual stream, or else all outputs that are added to it.

        Returns:
            What comes after the prompt.

        Raises:
            BadInput: a latent, model or hookpoint that is none, or a model without `logits`.
        """
        at_least("max_new_tokens", max_new_tokens, 0)
        m, names = _place("model", model, self._names.models), self._names
        for latent in (*steer, *ablate):
            self._check_latent(latent)
        if hookpoint is not None:
            _place("hookpoint", hookpoint, names.written)
        sites = (hookpoint,) if hookpoint is not None else direct_sites(names.written) or names.written
        writer = spliceable(list(self.models.values())[m])
        tokens = self._tokens_of("prompt", prompt)
        n_prompt, longest = len(tokens), writer.context_length or math.inf
        with torch.no_grad():
            while len(tokens) < min(n_prompt + max_new_tokens, longest):
                edits = self._edits(tokens, names.models[m], sites, steer, ablate)
                with one_at_a_time:
                    logits_SV = writer.logits(torch.tensor([tokens]), edits)[0]
                following = int(logits_SV[-1].argmax())
                if following == writer.eos_id:
                    break
                tokens.append(following)
        return str(self.tokenizer.decode(tokens[n_prompt:]))

    # --- how it is done ----------------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> Names:
        """The models' names and the hookpoints', as `Dataloader` has them."""
        return names_of(self.coder, _Named(tuple(self.models), self._hookpoints, self.options))

    @property
    def _hookpoints(self) -> tuple[str, ...]:
        options = self.options
        return tuple(dict.fromkeys((*options.reads, *options.writes))) if options.reads else options.hookpoints

    @cached_property
    def _harvester(self) -> Harvester:
        """As in training, without its cache."""
        options = self.options
        return Harvester(
            tuple(options.language_models),
            self._hookpoints,
            drop_first=options.drop_first,
            max_norm_multiple=options.max_norm_multiple,
            skip_not_finite=options.skip_not_finite,
        )

    def _check_latent(self, latent: int) -> None:
        count("latent", latent, least=0)
        at_most("latent", latent, self.coder.n_latents - 1, "the last latent")

    def _tokens_of(self, what: str, text: str) -> list[int]:
        """Token ids, with BOS where training's texts have it."""
        first = self.options.language_models[0]
        with one_at_a_time:
            (ids,) = self.tokenizer([text], add_special_tokens=False)["input_ids"]
        ids = list(ids)
        if first.bos_id is not None and ids[:1] != [first.bos_id]:
            ids = [first.bos_id, *ids]
        longest = min((model.context_length or math.inf for model in self.options.language_models), default=math.inf)
        if not ids or len(ids) > longest:
            raise BadInput(f"{what} of {len(ids)} tokens must have at least one, and at most the context's {longest}.")
        for model in self.options.language_models:
            check_ids(model.name, vocab_size_of(model), torch.tensor(ids))
        return ids

    def _coded(self, tokens: Sequence[int]) -> tuple[Int[Tensor, " N"], Float[Tensor, "N L"]]:
        """Which of some tokens are kept, and their latents."""
        encoder, models = self.coder.encoder, self.options.language_models
        columns = [self._hookpoints.index(name) for name in self._names.read if name in self._hookpoints]
        if len(models) * len(columns) != n_sites(encoder.in_dims):
            raise BadInput(
                f"the run's coder reads {n_sites(encoder.in_dims)} sites, but its options stand for {len(models)} "
                f"models at {len(self._hookpoints)} hookpoints: it was trained on data of its recipe's own."
            )
        ids_S = torch.tensor(tokens)
        harvest = self._harvester.harvest([TokenSequence(0, ids_S, torch.zeros_like(ids_S))])
        acts_NMPD = harvest.acts_NMPD[:, :, columns, : encoder.d_in]
        inputs_NXiDi = acts_NMPD.reshape(len(harvest), *encoder.in_dims, encoder.d_in).to(self.coder.scale_in_Xi)
        with torch.no_grad():
            return harvest.positions_N, self.coder.encode(inputs_NXiDi).dense()

    def _latents_of(self, text: str) -> TextLatents:
        tokens = self._tokens_of("text", text)
        kept_N, values_NL = self._coded(tokens)
        values_SL = torch.zeros(len(tokens), self.coder.n_latents)
        values_SL[kept_N] = values_NL.float().cpu()
        texts = texts_of(self.tokenizer, sorted(set(tokens)))
        left_out = {s: self._why(s, tokens[s]) for s in set(range(len(tokens))) - set(kept_N.tolist())}
        return TextLatents(tuple(texts[id_] for id_ in tokens), torch.tensor(tokens), values_SL, left_out)

    def _why(self, position: int, token: int) -> str:
        """Why training leaves a token out, as `Harvester` counts it."""
        if position < self._harvester.drop_first:
            return "first position"
        return "special token" if token in self._harvester.special_ids else "outlier in norm, or not finite"

    def _edits(
        self,
        tokens: Sequence[int],
        model: str,
        sites: Sequence[str],
        steer: Mapping[int, float],
        ablate: Sequence[int],
    ) -> dict[str, Edit]:
        """What is added to a model's activations at some hookpoints while it reads some tokens."""
        own_SL: Tensor | None = None
        if ablate:
            kept_N, values_NL = self._coded(tokens)
            own_SL = values_NL.new_zeros(len(tokens), self.coder.n_latents)
            own_SL[kept_N] = values_NL

        def edit_of(site: str) -> Edit:
            def edit(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
                for latent, value in steer.items():
                    acts_HSD = acts_HSD + value * self.direction(latent, model, site).to(acts_HSD)
                for latent in ablate:
                    assert own_SL is not None
                    own_SD = einsum(own_SL[:, latent], self.direction(latent, model, site), "S, D -> S D")
                    acts_HSD = acts_HSD - own_SD.to(acts_HSD)
                return acts_HSD

            return edit

        return {site: edit_of(site) for site in sites} if steer or ablate else {}


@attrs.frozen
class _Named:
    """The names that a `Dataloader` of a run's options has."""

    model_names: tuple[str, ...]
    hookpoints: tuple[str, ...]
    options: RunOptions

    @property
    def reads(self) -> tuple[str, ...] | None:
        return self.options.reads or None

    @property
    def writes(self) -> tuple[str, ...] | None:
        return self.options.writes or None


def _place(what: str, name: str | None, names: Sequence[str]) -> int:
    """The number of a model or hookpoint among several."""
    if name is None and len(names) > 1:
        raise BadInput(f"{what} must be named: it is one of {', '.join(map(repr, names))}.")
    if name is None:
        return 0
    one_of(what, name, names)
    return list(names).index(name)
