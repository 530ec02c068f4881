"""Arguments that cannot work: one line that names the argument, its value and what is allowed, when the part is made.

The expressions run as a user runs them, in a process without shape checks, which would refuse some of them first.
"""

import json
import re
import subprocess
import sys

import pytest

MADE = """
import json, sys
import attrs, torch
from crosscode.activations import *
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.initialization import *
from crosscode.losses import *
from crosscode.metrics import *
from crosscode.models import *
from crosscode.penalties import *
from crosscode.schedulers import *
from crosscode.training import ClipNorm, NonNegativeThresholds, RemoveParallelGradient, Trainer, UnitNormDecoder
from crosscode.training import Weighted, train_together

def coder(activation=None, dims=()):
    return SparseCoder(DenseEncoder(dims, 4, 6), activation or ReLU(), DenseDecoder(6, dims, 4))

def data(*dims):
    return [Batch.autoencode(torch.randn(8, *dims, 4, generator=torch.Generator().manual_seed(0)))]

def trainer(model=None, **given):
    model = model or coder()
    defaults = dict(model=model, data=data(), loss=SummedSquaredError(), lr=1e-3, num_steps=2)
    return Trainer(**{**defaults, "optimizer": torch.optim.Adam(model.parameters()), **given})

def step(**penalties):
    return trainer(penalties={name: Weighted(penalty, 1.0) for name, penalty in penalties.items()}).step(data())

def sae_measured(metric):
    return measure([metric], [Trace.of(coder(), data()[0])])

def foreign(**given):  # in which something holds OTHER
    return trainer(coder(JUMPRELU), **given)

def replaced(model):
    optimizer = torch.optim.Adam(model.parameters())
    model.encoder.b_enc_L = torch.nn.Parameter(torch.zeros(6))
    return trainer(model, optimizer=optimizer)

def replaces(coder, data):
    coder.encoder.b_enc_L = torch.nn.Parameter(torch.ones(6))

def changed(trainer, **given):
    for name, value in given.items():
        setattr(trainer, name, value)
    return trainer.train()

class Wraps:
    def __init__(self, *parts):
        self.parts = parts
    def __call__(self, *given):
        return self.parts[0](*given)

JUMPRELU, OTHER = JumpReLU(6), JumpReLU(6)

class Logs:
    metrics = [Thresholds(OTHER)]
    def __call__(self, trainer, report):
        pass

SITES = [JumpReLU(3), JumpReLU(3)]
STRICT = SparseCoder(
    MaskedEncoder((2,), 4, SiteMask([(6, (0,))])), ReLU(), MaskedDecoder(SiteMask([(6, (1,))]), (2,), 4)
)
MASKED = MaskedEncoder((2,), 4, SiteMask([(2, (0,)), (4, (0, 1))]))

said = {}
for expression in json.load(sys.stdin):
    try:
        eval(expression)
        said[expression] = ["", "was accepted"]
    except Exception as error:
        said[expression] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""

CHOICES = {
    "L1OfNorms('l1_of_l1')": "L1OfNorms.norm='l1_of_l1' must be one of 'l1_of_l2', .* Did you mean 'l1_of_l2'",
    "TanhSparsity(norm='l1')": "TanhSparsity.norm='l1' must be one of",
    "TanhFrequency(norm='L2')": "TanhFrequency.norm='L2' must be one of .* Did you mean 'l2'",
    "PreActivation(JUMPRELU, 'max')": "PreActivation.norm='max' must be one of",
    "AuxK(2, norm=None)": "AuxK.norm=None must be one of",
    "combined_norm_L(torch.ones(3, 2), 'l1_of_l1')": "norm='l1_of_l1' must be one of .* Did you mean 'l1_of_l2'",
    "TopK(3, norm='frobenius')": "TopK.norm='frobenius' must be one of 'l1_of_l2', 'l2'",
    "BatchTopK(3, norm='none')": "BatchTopK.norm='none' must be one of 'l1_of_l2', 'l2'",
    "GroupMax(3, norm='l1')": "GroupMax.norm='l1' must be one of 'l1_of_l2', 'l2'",
    "JumpReLU(6, parametrisation='exp')": "JumpReLU.parametrisation='exp' must be one of 'log', 'raw'",
    "NormalizeActivations(kind='mean-norm')": "kind='mean-norm' must be one of .* Did you mean 'mean_norm'",
    "DecoderBias('median')": "DecoderBias.centre='median' must be one of .* Did you mean .*'geometric_median'",
    "trainer(precision='bfloat16')": "precision='bfloat16' must be one of 'fp32', 'bf16'. Did you mean 'bf16'",
}
NUMBERS = {
    "SameAcrossSites(-1.0)": "SameAcrossSites.norm=-1.0 must be greater than 0",
    "AnthropicTranspose(0)": "AnthropicTranspose.norm=0 must be greater than 0",
    "ZeroDecoderSkip(norm=-1.0)": "ZeroDecoderSkip.norm=-1.0 must be greater than 0",
    "ZeroDecoderSkip(n_tokens=0)": "ZeroDecoderSkip.n_tokens=0 .*at least 1",
    "OrthogonalSkip(gain=-1.0)": "OrthogonalSkip.gain=-1.0 must be greater than 0",
    "OrthogonalSkip(norm=0.0)": "OrthogonalSkip.norm=0.0 must be greater than 0",
    "OrthogonalSkip(n_tokens=-3)": "OrthogonalSkip.n_tokens=-3 .*at least 1",
    "CLTUniform(0)": "CLTUniform.n_latents_per_site=0 .*at least 1",
    "CLTUniform(-4)": "CLTUniform.n_latents_per_site=-4 .*at least 1",
    "IdenticalLatents(1.5)": "IdenticalLatents.n_shared=1.5 must be a whole number",
    "DecoderBias(n_tokens=0)": "DecoderBias.n_tokens=0 .*at least 1",
    "JanUpdate(JUMPRELU, n_tokens=-1)": "JanUpdate.n_tokens=-1 .*at least 1",
    "JumpReLUWithoutBias(JUMPRELU, n_tokens=0)": "JumpReLUWithoutBias.n_tokens=0 .*at least 1",
    "TanhSparsity(c=-4)": "TanhSparsity.c=-4 must be greater than 0",
    "TanhSparsity(c=float('nan'))": "TanhSparsity.c=nan must be greater than 0",
    "TanhSparsity(c=float('inf'))": "TanhSparsity.c=inf must be greater than 0 and finite",
    "TanhSparsity(c='4')": "TanhSparsity.c='4' must be a number",
    "TanhSparsity(latents=range(3))": r"TanhSparsity.latents=range\(0, 3\) must be a contiguous slice",
    "L1OfNorms(latents=slice(0, 6, 2))": r"L1OfNorms.latents=slice\(0, 6, 2\) must be a contiguous slice",
    "DeltaReconstruction([0, 1])": r"DeltaReconstruction.latents=\[0, 1\] must be a contiguous slice",
    "TanhFrequency(c=0)": "TanhFrequency.c=0 must be greater than 0",
    "L0Quadratic(JUMPRELU, target=0)": "L0Quadratic.target=0 must be greater than 0",
    "L0QuadraticRelative(JUMPRELU, target=-2)": "L0QuadraticRelative.target=-2 must be greater than 0",
    "PreActivation(JUMPRELU, dead_after_tokens=0)": "PreActivation.dead_after_tokens=0 .*at least 1",
    "AuxK(2.5)": "AuxK.k=2.5 must be a whole number",
    "TopK(2.5)": "TopK.k=2.5 must be a whole number",
    "TopK('2')": "TopK.k='2' must be a whole number",
    "BatchTopK(2.5)": "BatchTopK.k=2.5 must be a whole number",
    "GroupMax(2.5)": "GroupMax.k=2.5 must be a whole number",
    "TopK(lambda step: float('nan'))": "TopK.k at step 0=nan must be a finite number",
    "SiteMask(5)": "SiteMask.groups=5 must be a list of groups",
    "SiteMask([])": r"SiteMask.groups=\[\] must be a list of groups",
    "SiteMask([(3, 'ab')])": r"SiteMask.groups=\[\(3, 'ab'\)\] must be a list of groups",
    "sae(4, 8, TopK(LinearRamp(3, 10, start=9)))": "TopK.k=9 is too large: it must be at most n_latents=8",
    "ExponentialRamp(3, 10, start=0)": "ExponentialRamp.start=0.0 must be greater than 0",
    "BatchTopK(3, ema_decay=1.5)": "BatchTopK.ema_decay=1.5 must be at least 0 and less than 1",
    "BatchTopK(3, ema_start=-1)": "BatchTopK.ema_start=-1 .*at least 0",
    "JumpReLU(2.5)": "JumpReLU.n_latents=2.5 must be a whole number",
    "JumpReLU(6, bandwidth=float('inf'))": "JumpReLU.bandwidth=inf must be greater than 0 and finite",
    "Priced(ReLU(), 2, 0.1)": "Priced.activation is a ReLU, which ranks no latents",
    "(lambda one: SeparateBudgets(one, one, 2))(BatchTopK(1))": "SeparateBudgets.shared and exclusive are one",
    "L0({'shared': 4})": r"L0.groups\['shared'\] must be a mask of the latents, got 4",
    "sae_measured(L0({'shared': torch.arange(6)}))": r"L0.groups\['shared'\] is int64 of shape \(6,\).* n_latents=6",
    "sae_measured(L0({'shared': torch.ones(7).bool()}))": r"L0.groups\['shared'\] is bool of shape \(7,\).*=6 latents",
    "WarmupStableDecay(1e-3, 600, decay_steps=4200)": "decay_steps=4200 .*num_steps=600",
    "WarmupStableDecay(1e-3, 600, warmup_steps=601)": "warmup_steps=601 .*num_steps=600",
    "Join(((-1, Constant(1)),), Constant(1))": "Join.parts: a number of steps=-1 .*at least 0",
    "trainer(accumulate=1.5)": "accumulate=1.5 must be a whole number",
    "trainer(num_steps=0)": "num_steps=0 .*at least 1",
}
WIDTHS = {
    f"{coder.format(widths)}": wanted
    for coder in (
        "acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=5, n_latents=6, activation=ReLU(), widths_X={})",
        "cross_layer_transcoder(5, 2, 6, ReLU(), widths_Xo={})",
        "compound_cross_layer_transcoder(5, 2, 3, ReLU(), widths_Xi={})",
        "compound_cross_layer_transcoder(5, 2, 3, ReLU(), widths_Xo={})",
    )
    for widths, wanted in {
        "(5, 3, 2)": r"widths_X.?=\(5, 3, 2\) holds 3 widths for the 2 sites",
        "(5,)": r"widths_X.?=\(5,\) holds 1 widths for the 2 sites",
        "(5, 6)": r"widths_X.?=\(5, 6\) must lie between 1 and the padded width 5",
        "(0, 5)": r"widths_X.?=\(0, 5\) must lie between 1 and the padded width 5",
    }.items()
}
SHAPES = {
    "transcoder(4, 6, ReLU(), widths_Xi=(4, 4))": r"widths_Xi=\(4, 4\) holds 2 widths for the 1 sites",
    "transcoder(4, 6, ReLU(), d_out=3, widths_Xo=(4,))": r"widths_Xo=\(4,\) must lie between 1 and the padded width 3",
    "DenseEncoder((2,), 4, 6, widths_Xi=(4, 5))": r"widths_Xi=\(4, 5\) must lie between 1 and the padded width 4",
    "acausal_crosscoder(n_models=0, n_hookpoints=1, d_model=4, n_latents=6, activation=ReLU())": "n_models=0 .*at",
    "acausal_crosscoder(n_models=1, n_hookpoints=0, d_model=4, n_latents=6, activation=ReLU())": "n_hookpoints=0 .*at",
    "cross_layer_transcoder(4, 0, 6, ReLU())": "n_targets=0 .*at least 1",
    "compound_cross_layer_transcoder(4, 0, 6, ReLU())": "n_sites=0 .*at least 1",
    "DenseEncoder((0, 2), 4, 6)": r"crosscoding dimensions \(0, 2\) must all be at least 1",
}
PARTS = {
    "IdenticalLatents(2)(coder(), [])": "IdenticalLatents needs models",
    "JanUpdate(OTHER)(coder(JumpReLU(6)), data())": "JanUpdate.jumprelu is no part of the coder",
    "JanUpdate(JumpReLU(3))(coder(JumpReLU(6)), data())": "JanUpdate.jumprelu is no part of the coder",
    "JumpReLUWithoutBias(OTHER)(SparseCoder(DenseEncoder((), 4, 6, bias=False), JumpReLU(6), DenseDecoder(6, (), 4)),"
    " data())": "JumpReLUWithoutBias.jumprelu is no part of the coder",
    "(lambda parts: JanUpdate(parts[0])(coder(PerSite(parts), (2,)), data(2)))([JumpReLU(3), JumpReLU(3)])": (
        "n_latents=3 must equal the coder's n_latents=6"
    ),
    "Weighted('x', 1.0)": "Weighted.penalty='x' must be a function of the Trace",
    "Weighted(L1OfNorms, 1.0)": "Weighted.penalty=<class .*L1OfNorms'> must be a function of the Trace",
    "Weighted(L1OfNorms(), 'x')": "'x' is no weight or rate",
    "Weighted(L1OfNorms(), None)": "None is no weight or rate",
    "Constant('fast')": "'fast' is no weight or rate",
    "trainer(penalties={'l1': L1OfNorms()})": "penalty 'l1' is a L1OfNorms, not Weighted",
    "step(each=lambda trace: trace.latents_BL.sum(-1))": r"penalty 'each' gives a tensor of shape \(8,\)",
    "step(nothing=lambda trace: None)": "penalty 'nothing' gives None",
    "trainer(loss=lambda trace: trace.error_BXoDo.square()).step(data())": r"loss gives a tensor of shape \(8, 4\)",
    "sae_measured(DecoderNormRatio())": "DecoderNormRatio.* compares models",
    "sae_measured(DecoderCosine())": "DecoderCosine.* compares models",
    "measure([DecoderCosine(2, 0)], [Trace.of(coder(dims=(2,)), data(2)[0])])": r"model=2, other=0\) compares models",
    "DecoderNormRatio(-1)": "DecoderNormRatio.model=-1 .*at least 0",
    "PerSite([JumpReLU(3), ReLU()]).threshold_L": "PerSite has no thresholds at every site: ReLU has none",
    "PerSite([JumpReLU(3), ReLU()]).step(torch.ones(2, 6))": "PerSite has no thresholds at every site: ReLU has none",
}
KINDS = {
    "SparseCoder(DenseEncoder((), 4, 6), ReLU, DenseDecoder(6, (), 4))": "SparseCoder.activation=ReLU is a class: hand",
    "SparseCoder(DenseEncoder((), 4, 6), 'relu', DenseDecoder(6, (), 4))": "must be an Activation.* got 'relu'",
    "SparseCoder(DenseEncoder, ReLU(), DenseDecoder(6, (), 4))": "SparseCoder.encoder=DenseEncoder is a class",
    "SparseCoder(DenseEncoder((), 4, 6), ReLU(), None)": "SparseCoder.decoder must be a Decoder.* got None",
    "sae(4, 6, None)": "SparseCoder.activation must be an Activation.* got None",
    "PerSite(None)": "PerSite.activations must be a list of activations, .* got None",
    "PerSite([ReLU])": r"PerSite.activations\[0\]=ReLU is a class",
    "SeparateBudgets(TopK(1), None, 3)": "SeparateBudgets.exclusive must be an Activation.* got None",
    "Priced(None, 3, 0.1)": "Priced.activation must be an Activation.* got None",
    "PreActivation(JumpReLU)": "PreActivation.jumprelu=JumpReLU is a class",
    "PreActivation(ReLU())": "PreActivation.jumprelu must be a JumpReLU, or a PerSite of them, got ReLU",
    "L0Quadratic(None, 3)": "L0Quadratic.jumprelu must be a JumpReLU.* got None",
    "JanUpdate(JumpReLU)": "JanUpdate.jumprelu=JumpReLU is a class",
    "Thresholds(ReLU())": "Thresholds.jumprelu must be a JumpReLU",
    "FixedNMSE(variance=0)": "FixedNMSE.variance=0 must be greater than 0",
    "FixedNMSE(variance='a')": "FixedNMSE.variance='a' must be a number",
    "MatryoshkaSquaredError((1, 2), reduction='max')": "reduction='max' must be one of 'sum', 'mean'",
    "MatryoshkaSquaredError((2, 1))": r"prefixes=\(2, 1\) must be ascending",
    "MatryoshkaSquaredError(())": r"prefixes=\(\) must be ascending",
    "MatryoshkaSquaredError(3)": "prefixes=3 must be a tuple of whole numbers",
    "DenseEncoder(3, 4, 6)": "DenseEncoder.in_dims=3 must be a tuple of whole numbers",
    "DenseEncoder((2.5,), 4, 6)": r"DenseEncoder.in_dims=\(2.5,\) must be a tuple of whole numbers",
    "DenseEncoder((), 4.0, 6)": "DenseEncoder.d_in=4.0 must be a whole number",
    "MaskedEncoder((2,), 4, None)": "MaskedEncoder.mask must be a SiteMask, got None",
    "MaskedDecoder(SiteMask([(3, (0, 2))]), (2,), 4)": r"SiteMask.groups names sites \(0, 2\), but there are only 2",
    "SiteMask([(3, ())])": r"SiteMask.groups\[0\] of 3 latents touches no site",
    "SiteMask([(0, (1,))])": r"SiteMask.groups\[0\]: its latents=0 is too small: it must be at least 1",
    "SharedDecoder(6, None, (2,), 4)": "SharedDecoder.n_shared=None must be a whole number",
    "LinearSkip((), None, (), 4)": "LinearSkip.d_in=None must be a whole number",
    "LinearSkip((2,), 4, (3,), 4, [(-1, 0)])": r"LinearSkip.pairs has \(-1, 0\), but there are 2 inputs and 3 outputs",
    "LinearSkip((2,), 4, (3,), 4, [(0, -1)])": r"LinearSkip.pairs has \(0, -1\)",
    "LinearSkip((2,), 4, (3,), 4, [(0, 2), (2, 0)])": r"LinearSkip.pairs has \(2, 0\)",
    "LinearSkip((2,), 4, (3,), 4, [(1, 2), (1, 3)])": r"LinearSkip.pairs has \(1, 3\)",
    "MaskedEncoder((2,), 4, SiteMask([(6, (0, -1))]))": r"SiteMask.groups names sites \(-1, 0\), but there are",
    "MaskedEncoder((2,), 4, SiteMask([(6, (0, 2))]))": r"SiteMask.groups names sites \(0, 2\), but there are",
    "trainer(loss=None)": "loss must be a function.* got None",
    "trainer(loss=SummedSquaredError)": "loss=SummedSquaredError is a class",
    "Batch(torch.randn(3, 4), torch.randn(1, 4))": r"targets_BXoDo of shape \(1, 4\) has not as many tokens",
    "Batch.autoencode([[1.0, 2.0]])": "Batch.inputs_BXiDi must be a tensor of activations, got",
    "trainer().step([])": "a step needs at least one token",
    "trainer().step([Batch.autoencode(torch.zeros(0, 4))] * 2)": "a step needs at least one token",
    "trainer().step([torch.randn(3, 4)])": r"data must be batches, such as Batch\.autoencode\(activations\), got",
    "NormalizeActivations()(coder(), [torch.randn(3, 4)])": r"data must be batches, such as Batch\.autoencode",
    "train_together(trainer())": "trainers must be a list of Trainers, got",
    "train_together([1, 2])": "trainers must be a list of Trainers, got 1",
    "(lambda one: train_together([one, one]))(trainer())": "trainers hold one coder twice",
    "(lambda model: train_together([trainer(model), trainer(model)]))(coder())": "trainers hold one coder twice",
    "trainer(data=3)": "data must be re-iterable batches.* got 3",
    "trainer(held_out=3)": "held_out must be re-iterable batches, or None, got 3",
    "trainer(optimizer=torch.optim.Adam)": "optimizer=Adam is a class",
    "trainer(penalties=[Weighted(L1OfNorms(), 1)])": "penalties must be a dictionary of Weighted penalties",
    "trainer(init=NormalizeActivations())": "init must be a list or a tuple, got",
    "trainer(init=[NormalizeActivations])": r"init\[0\]=NormalizeActivations is a class",
    "trainer(metrics=[L0])": r"metrics\[0\]=L0 is a class: hand over an object of it",
    "trainer(metrics=[ReLU()])": r"metrics\[0\] must be a metric, such as L0\(\), got ReLU\(\): it has no start",
    "trainer(interventions=[3])": r"interventions\[0\] must be a function, .* got 3",
    "trainer(callbacks=[3])": r"callbacks\[0\] must be a function, .* got 3",
    "trainer(gradients=None)": "gradients must be a list or a tuple, got None",
    "Trainer(model='sae', data=data(), loss=FixedNMSE(1), optimizer=None, lr=1, num_steps=1)": "model must be a Sparse",
    "Trace.of(coder(), torch.randn(3, 4))": "batch must be a Batch",
    "coder().encode(None)": "x_BXiDi must be a tensor of activations, got None",
}
FITTING = {  # parts that are right one by one
    "foreign(penalties={'p': Weighted(PreActivation(OTHER), 1)})": (
        "penalty 'p' holds a JumpReLU that is no part of the"
    ),
    "foreign(penalties={'p': Weighted(Wraps(PreActivation(OTHER)), 1)})": (
        "penalty 'p' holds a JumpReLU that is no part"
    ),
    "foreign(penalties={'p': Weighted(PreActivation(OTHER).__call__, 1)})": "penalty 'p' holds a JumpReLU that is no",
    "foreign(loss=Wraps([{'a': PreActivation(OTHER)}]))": "loss holds a JumpReLU that is no part of the model",
    "foreign(init=[Wraps(JanUpdate(OTHER))])": r"init\[0\] holds a JumpReLU that is no part of the model",
    "foreign(constraints=[NonNegativeThresholds(OTHER)])": r"constraints\[0\] holds a JumpReLU that is no part of the",
    "foreign(callbacks=[Logs()])": r"callbacks\[0\] holds a JumpReLU that is no part of the model",
    "changed(foreign(), penalties={'p': Weighted(ExpectedL0(OTHER), 1)})": (
        "penalty 'p' holds a JumpReLU that is no part"
    ),
    "trainer(init=[JanUpdate(JumpReLU(6))])": r"init\[0\] holds a JumpReLU that is no part of the model",
    "trainer(init=[NormalizeActivations(), OrthogonalSkip()])": "OrthogonalSkip needs a coder with a skip",
    "trainer(coder(TopK(2)), init=[ZeroDecoderSkip()])": "a zero decoder gives every weighted score 0",
    "trainer(sae(4, 6, ReLU()), init=[IdenticalLatents(2)])": "IdenticalLatents needs models",
    "trainer(STRICT, data=data(2), init=[AnthropicTranspose()])": (
        r"AnthropicTranspose: 6 of 6 latents write none of the sites that they read \(latent 0 reads \[0\] and writes "
        r"\[1\]\), so that a transposed encoder is 0 there: use CLTUniform"
    ),
    "trainer(STRICT, data=data(2), init=[SameAcrossSites()])": "SameAcrossSites: 6 of 6 latents write none",
    "trainer(SparseCoder(MASKED, ReLU(), DenseDecoder(6, (2,), 4)), data=data(2), init=[IdenticalLatents(3)])": (
        "IdenticalLatents: the mask keeps some of the first 3 latents from a model"
    ),
    "trainer(acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=4, n_latents=6, activation=ReLU(), "
    "widths_X=(4, 3)), data=data(2, 1), init=[IdenticalLatents(3)])": r"widths_Xo=\(4, 3\) differ between models",
    "trainer(SparseCoder(DenseEncoder((), 4, 6), ReLU(), DenseDecoder(6, (), 4, bias=False)), init=[DecoderBias()])": (
        "DecoderBias needs a decoder with a bias"
    ),
    "trainer(SparseCoder(DenseEncoder((), 4, 6), ReLU(), DenseDecoder(6, (2,), 4)), init=[SameAcrossSites()])": (
        "SameAcrossSites transposes the decoder"
    ),
    "trainer(coder(TopK(2)), gradients=[RemoveParallelGradient()])": (
        "RemoveParallelGradient is for dense decoders whose"
    ),
    "trainer(coder(TopK(2)), constraints=[UnitNormDecoder()])": (
        "UnitNormDecoder is for dense decoders whose norms play"
    ),
    "trainer(init=[JanUpdate])": r"init\[0\]=JanUpdate is a class",
    "trainer(penalties={'p': Weighted(L1OfNorms(latents=slice(0, 7)), 1)})": (
        r"L1OfNorms.latents=slice\(0, 7, None\) is no range of the coder's n_latents=6"
    ),
    "trainer(penalties={'p': Weighted(TanhSparsity(latents=slice(8, None)), 1)})": (
        r"TanhSparsity.latents=slice\(8, Non"
    ),
    "trainer(penalties={'p': Weighted(TanhFrequency(latents=slice(-7, None)), 1)})": (
        "TanhFrequency.latents=slice.-7, No"
    ),
    "trainer(coder(dims=(2,)), data=data(2), penalties={'p': Weighted(DeltaReconstruction(slice(0, 9)), 1)})": (
        "DeltaReconstruction.latents=slice.0, 9, None. is no range"
    ),
    "trainer(penalties={'p': Weighted(DifferenceWeighting(), 1)})": "DifferenceWeighting needs two models",
    "trainer(coder(PerSite(SITES)), penalties={'p': Weighted(PreActivation(SITES[0]), 1)})": (
        "PreActivation.jumprelu has 3 thresholds for the coder's n_latents=6"
    ),
    "trainer(coder(PerSite(SITES)), penalties={'p': Weighted(L0Quadratic(SITES[1], 2), 1)})": (
        "L0Quadratic.jumprelu has 3"
    ),
    "trainer(loss=MatryoshkaSquaredError((2, 9)))": r"MatryoshkaSquaredError.prefixes=\(2, 9\) exceed n_latents=6",
    "trainer(loss=SummedSquaredError((1.0, 2.0)))": r"site_weights=\(1.0, 2.0\) must hold one weight per site",
    "replaced(coder())": r"optimizer does not hold all parameters of the model \(encoder.b_enc_L\): build it on",
    "trainer(init=[replaces]).train()": r"optimizer does not hold all parameters of the model \(encoder.b_enc_L\)",
    "trainer(optimizer=torch.optim.Adam(coder().parameters()))": "optimizer does not hold all parameters of the model",
    "(lambda data: train_together([foreign(data=data), foreign(data=data)]))(data())": (
        r"trainers hold one JumpReLU twice \(activation\)"
    ),
}
CASES = {**FITTING, **CHOICES, **KINDS, **NUMBERS, **WIDTHS, **SHAPES, **PARTS}


@pytest.fixture(scope="module")
def said() -> dict[str, tuple[str, str]]:
    """What each expression raised: the error's class and its text."""
    made = subprocess.run(
        [sys.executable, "-c", MADE], input=json.dumps(list(CASES)), capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


@pytest.mark.parametrize("expression", CASES)
def test_an_impossible_argument_is_one_line(expression: str, said: dict[str, tuple[str, str]]) -> None:
    """It is refused on purpose, and the line says which argument, what it was and what is allowed."""
    error, text = said[expression]
    assert error == "BadInput", text
    assert re.search(CASES[expression], text), text
    assert "\n" not in text
