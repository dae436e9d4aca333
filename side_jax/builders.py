"""Builds objects from settings: schedule, networks, sampler and metrics, for every binary."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.attacks.table import PLAIN
from side_jax.diffusion import guidance, mode_seeking, steps
from side_jax.diffusion.genetic import Order, Rates
from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.models import adapters, label_table
from side_jax.models.callback import Callback
from side_jax.models.classifier import Classifier, log_probs
from side_jax.models.half_unet import HalfUNet
from side_jax.models.labelled import Labelled
from side_jax.models.resnet import ResNet
from side_jax.models.unet import UNet
from side_jax.sampling.generation import ApplyFn, Generator
from side_jax.sampling.genetic_search import GeneticSearch, SearchProgram, Stored, targets
from side_jax.sampling.mode_generation import ModeGenerator, ModeProgram, RequestProgram, Starts
from side_jax.settings import BlackBox, Diffusion, Modes, Sampler, Settings
from side_jax.settings.checks import check
from side_jax.settings.extraction import LABEL
from side_jax.settings.target import OBJECT
from side_jax.targets import networks, objects
from side_jax.targets.target_model import Target


def image_shape(settings: Settings) -> tuple[int, int, int]:
    """(height, width, channels) of the images."""
    return settings.data.shape


def sampled_shape(settings: Settings) -> tuple[int, int, int]:
    """(height, width, channels) of what the model samples: of the images, or of their latents."""
    return build_target(settings).shape(image_shape(settings)[:2])


def build_schedule(settings: Settings) -> Schedule:
    """The DPM's noise schedule: one object for equal settings, so that what is compiled for it is found again."""
    return _schedule(settings.diffusion)


@functools.lru_cache(maxsize=8)
def _schedule(diffusion: Diffusion) -> Schedule:
    return diffusion.make()


def build_network(settings: Settings, *, labels: bool = True) -> Any:
    """The network of the target DPM, or without its labels; settings of 0 become None where diffusers has null."""
    if settings.target.network:
        if settings.target.format == OBJECT:
            objects.require(settings.target.sha256)
        computed = {"dtype": jnp.dtype(settings.model.dtype), "remat": settings.model.remat}
        return networks.build(settings.target.network, **computed)
    options = dataclasses.asdict(settings.model)
    for name in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim", "num_attention_heads"):
        options[name] = options[name] or None
    options["dtype"] = jnp.dtype(options["dtype"])
    condition = settings.condition
    options |= {"num_labels": condition.num_labels, "null_label": condition.null_label} if labels else {}
    return UNet(out_channels=settings.data.channels, **options)


@functools.lru_cache(maxsize=8)
def build_target(settings: Settings) -> Target:
    """The audited model, whose parameters are trained here or were read from a file."""
    condition = settings.condition
    return Target(
        network=build_network(settings),
        diffusion=settings.diffusion,
        channels=settings.data.channels,
        num_labels=condition.num_labels,
        null_label=condition.null_label,
        size=image_shape(settings)[:2],
    )


def build_weak_network(settings: Settings) -> UNet:
    """The network of the weaker model: the target's own at an earlier step, or one that learned no labels."""
    if settings.target.format == OBJECT:  # which can't be trained, in contrast to the section `model`
        settings = dataclasses.replace(settings, target=dataclasses.replace(settings.target, network=""))
    return build_network(settings, labels=bool(settings.weak.step))


def build_adapted_network(settings: Settings, num_labels: int) -> Labelled:
    """The network of the audited model with so many labels of adapters, and one more for none."""
    return Labelled(net=build_network(settings), num_labels=num_labels)


def adapters_fn(settings: Settings, params: Any, num_labels: int, seed: int) -> Callable[[], dict[str, Any]]:
    """A compiled function that returns the adapters before their training, see adapters.initial.

    Args:
      settings: of the run.
      params: of the target, arrays or their shapes.
      num_labels: number of labels.
      seed: of the adapters.
    """
    network, own = build_network(settings), settings.adapters
    options: dict[str, Any] = {"rank": own.rank, "kernels": own.kernels}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    init = jax.jit(lambda seed: adapters.initial(network, shapes, num_labels, jax.random.key(seed), **options))
    return functools.partial(init, np.uint32(seed))


def merge_adapters(settings: Settings, params: Any, trained: dict[str, Any]) -> Any:
    """The parameters of build_adapted_network's network, from those of the target and trained adapters."""
    network = build_network(settings)
    return jax.jit(lambda params, trained: adapters.merge(network, params, trained, settings.adapters.alpha))(
        params, trained
    )


def build_classifier(settings: Settings, num_classes: int, *, time_dependent: bool) -> Classifier:
    """SIDE's surrogate (time-dependent) or the conditional baseline's classifier (not)."""
    network = settings.classifier
    options = {"num_classes": num_classes, "stage_sizes": network.stage_sizes, "width": network.width}
    options["time_dependent"] = time_dependent
    resnet_options = {"norm": network.norm, "stem_stride": network.stem_stride}
    return {
        "resnet": lambda: ResNet(**options, **resnet_options),
        "resnet_bottleneck": lambda: ResNet(**options, **resnet_options, bottleneck=True),
        "half_unet": lambda: HalfUNet(**options),
    }[network.architecture]()


def init_fn(module: Any, settings: Settings, seed: int) -> Callable[[], Any]:
    """A compiled function that returns the module's initial parameters and running statistics."""
    return functools.partial(_initializer(module, sampled_shape(settings)), np.uint32(seed))


@functools.lru_cache(maxsize=8)
def _initializer(module: Any, shape: tuple[int, int, int]) -> Callable[[np.uint32], Any]:
    """Takes the seed as an argument: networks that differ by it alone are compiled once."""

    # The default generator is compiled for each parameter, which is slow on CPU; rbg takes a third of that time.
    @jax.jit
    def init(seed: jax.Array) -> dict:
        x = jnp.zeros((1, *shape), jnp.float32)
        variables = module.init(jax.random.key(seed, impl="rbg"), x, jnp.zeros((1,), jnp.int32))
        return variables.pop("params") | variables

    return init


def parameter_count(settings: Settings, module: Any = None) -> int:
    """The number of parameters of a network, by default the U-Net; computes shapes only."""
    return size(jax.eval_shape(init_fn(module or build_network(settings), settings, 0)))


def count(settings: Settings, params: Any) -> int:
    """The number of parameters of the target; 0 for a Python object that does not say."""
    network = build_network(settings)
    return network.num_parameters if isinstance(network, Callback) else size(params)


def size(params: Any) -> int:
    """The number of elements in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def build_step_table(settings: Settings, sampler: Sampler) -> steps.StepTable:
    """A sampler's coefficients, and which of its steps are guided. Latents have no range to be clipped to."""
    clip = {"clip": False} if build_target(settings).latent else {}
    return steps.step_table(
        build_schedule(settings),
        sampler.num_steps,
        solver=sampler.solver,
        spacing=sampler.spacing,
        interval=settings.extract.guidance_interval,
        **(sampler.solver_options | clip),
    )


def build_denoise(settings: Settings) -> ApplyFn:
    """The DPM as plain sampling uses it, without labels, see Target.default_labels.

    Returns:
      ({"dpm": parameters}, x_t, t, the images' global indices) -> prediction, of the schedule's prediction type. Only
      a model that always needs a label needs the indices.
    """
    target = build_target(settings)
    return lambda params, x, t, index=None: target.denoise(params["dpm"], x, t, target.default_labels(index))


def build_decode(settings: Settings) -> Callable[[Any, jax.Array], jax.Array]:
    """({"dpm": parameters}, what the model sampled) -> images, float32 [b, h, w, c] in about [-1, 1]."""
    target = build_target(settings)
    return lambda params, x: target.decode(params["dpm"], x)


def build_encode(settings: Settings) -> Callable[[Any, jax.Array], jax.Array]:
    """({"dpm": parameters}, images float32 [b, h, w, c]) -> what the model would sample for them."""
    target = build_target(settings)
    return lambda params, images: target.encode(params["dpm"], images)


def build_conditional_denoise(settings: Settings) -> ApplyFn:
    """As build_denoise, with labels int32 [b] in place of indices; label -1 means none."""
    target = build_target(settings)
    return lambda params, x, t, labels: target.denoise(params["dpm"], x, t, labels)


def build_log_prob(settings: Settings, classifier: Classifier, *, at_x0: bool) -> ApplyFn:
    """The log-probabilities for guidance: (the generator's parameters, x_t, t, indices) -> [b, classes]."""
    denoise, schedule, target = build_denoise(settings), build_schedule(settings), build_target(settings)

    def calibrated(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        values = log_probs(classifier, params["classifier"], x, t)
        return jax.nn.log_softmax(values / params["temperature"][t][:, None])

    def log_prob(params: Any, x: jax.Array, t: jax.Array, index: jax.Array | None = None) -> jax.Array:
        classify = functools.partial(calibrated, params)
        if at_x0:
            predict = functools.partial(denoise, params, index=index)
            classify = guidance.at_predicted_x0(classify, predict, schedule, clip=not target.latent)
        return classify(x, t)

    return log_prob


@functools.lru_cache(maxsize=4)  # attacks that differ only in what their classifiers learned share one program
def build_generator(
    settings: Settings,
    classifier: Classifier | None = None,
    *,
    at_x0: bool = False,
    own_labels: bool = False,
    weak: bool = False,
    sampler: Sampler | None = None,
) -> Generator:
    """The generator of the DPM's images: unguided, or guided by a classifier, its own labels or a weaker model.

    Its parameters are a dict with "dpm" (the U-Net's parameters) and, for guidance by a classifier, "classifier" and
    "temperature", float32 [T], which divides the classifier's log-probabilities at each timestep; for guidance by a
    weaker model, "weak", its parameters.

    Args:
      settings: of the run.
      classifier: the guiding classifier, if any.
      at_x0: whether the classifier sees the predicted clean image; otherwise x_t.
      own_labels: whether guidance uses the DPM's training labels instead of a classifier.
      weak: whether guidance leads away from a weaker model.
      sampler: the sampler settings; None: settings.sampler.
    """
    sampler = sampler or settings.sampler
    log_prob = build_log_prob(settings, classifier, at_x0=at_x0) if classifier else None
    conditional, schedule = build_conditional_denoise(settings), build_schedule(settings)
    denoise, weak_network = build_denoise(settings), build_weak_network(settings) if weak else None

    def guide(params: Any, index: jax.Array, labels: jax.Array, scale: jax.Array) -> guidance.Guidance:
        if weak:
            variables = {"params": params["weak"]}
            gradient = guidance.extrapolation_gradient(
                lambda x, t: denoise(params, x, t, index), lambda x, t: weak_network.apply(variables, x, t), schedule
            )
        elif own_labels:
            gradient = guidance.implicit_gradient(functools.partial(conditional, params), labels, schedule)
        else:
            gradient = guidance.classifier_gradient(lambda x, t: log_prob(params, x, t, index), labels)
        if settings.extract.normalize_gradient:
            gradient = guidance.normalize(gradient)
        return guidance.Guidance(gradient_fn=gradient, scale=scale, form=settings.extract.guidance_form)

    return Generator(
        denoise=denoise,
        decode=build_decode(settings),
        guide=guide if classifier or own_labels or weak else None,
        table=build_step_table(settings, sampler),
        shape=sampled_shape(settings),
        batch_size=sampler.batch_size,
        loop=sampler.loop,
    )


@functools.lru_cache(maxsize=4)
def build_label_generator(settings: Settings, images: int) -> Generator:
    """The generator of a conditional model without guidance: index i is of the label i // images.

    Args:
      settings: of a run whose target has labels.
      images: of each label.
    """
    conditional = build_conditional_denoise(settings)

    def denoise(params: Any, x: jax.Array, t: jax.Array, index: jax.Array) -> jax.Array:
        return conditional(params, x, t, (index // images).astype(jnp.int32))

    return Generator(
        denoise=denoise,
        decode=build_decode(settings),
        table=build_step_table(settings, settings.sampler),
        shape=sampled_shape(settings),
        batch_size=settings.sampler.batch_size,
        loop=settings.sampler.loop,
    )


@functools.lru_cache(maxsize=4)
def build_adapted_generator(settings: Settings, num_labels: int, *, steered: bool, sampler: Sampler) -> Generator:
    """The generator of the target with adapters: every image has a label, and `steered` is guidance beyond that.

    Its parameters are {"dpm": those of merge_adapters}. A guidance scale w makes the prediction epsilon_null + w
    (epsilon_c - epsilon_null); 1 is no guidance, and needs one evaluation of the network where others need two.

    Args:
      settings: of the run.
      num_labels: number of labels.
      steered: whether the scale acts.
      sampler: the sampler settings.
    """
    target, network = build_target(settings), build_adapted_network(settings, num_labels)
    schedule = build_schedule(settings)

    def denoise(params: Any, x: jax.Array, t: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
        own = target.default_labels(index)
        return network.apply({"params": params["dpm"]}, x, t, labels=labels, own=own)

    def guide(params: Any, index: jax.Array, labels: jax.Array, scale: jax.Array) -> guidance.Guidance:
        def given(x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
            return denoise(params, x, t, index, labels)

        gradient = guidance.implicit_gradient(given, labels, schedule)
        if settings.extract.normalize_gradient:
            gradient = guidance.normalize(gradient)
        # Of what the sampler does with the label alone, the direction counts once already.
        return guidance.Guidance(gradient_fn=gradient, scale=scale - 1.0, form=settings.extract.guidance_form)

    return Generator(
        denoise=denoise,
        decode=lambda params, x: target.decode(params["dpm"]["net"], x),
        guide=guide if steered else None,
        labelled=True,
        table=build_step_table(settings, sampler),
        shape=sampled_shape(settings),
        batch_size=sampler.batch_size,
        loop=sampler.loop,
    )


@functools.lru_cache(maxsize=4)  # so that runs that differ in their start or noise level compile once
def build_mode_program(settings: Settings, *, from_noise: bool) -> ModeProgram:
    """The rounds of mode seeking, from given images or from noise; the parameters are those of build_denoise."""
    modes = settings.modes
    return ModeProgram(
        denoise=build_denoise(settings),
        encode=build_encode(settings),
        decode=build_decode(settings),
        schedule=build_schedule(settings),
        shape=sampled_shape(settings) if from_noise else image_shape(settings),
        batch_size=settings.sampler.batch_size,
        clip=not build_target(settings).latent,
        from_noise=from_noise,
        random=modes.random,
        relaxation=modes.relaxation,
        anderson=modes.anderson,
    )


def with_modes(settings: Settings, modes: Modes) -> Settings:
    """The settings with other ones of mode seeking, which are not checked against those of the attacks."""
    if settings.modes == modes:  # equal settings share one compiled program
        return settings
    extract = dataclasses.replace(settings.extract, attacks=(PLAIN.name,))
    return dataclasses.replace(settings, modes=modes, extract=extract)


def mode_noise_levels(
    settings: Settings, noise: float, rounds: int, spread: float, name: str = "modes.noise_levels"
) -> np.ndarray:
    """Sigma of each round of mode seeking, float32 [rounds].

    Args:
      settings: of the run.
      noise: of the first round, in units of the spread, as in modes.noise_levels.
      rounds: number of rounds.
      spread: of the training images, see mode_seeking.spread.
      name: of the setting that holds the noise.

    Raises:
      InputError: if a round's noise is not among the model's, or the training images are all alike.
    """
    if spread == 0:
        raise InputError(
            "the training images are all alike, so that mode seeking has no scale for its noise; remove it from "
            "config.extract.attacks, and set config.monitor.seeks_modes = False."
        )
    first, last = spread * noise, spread * noise * settings.modes.last_noise
    low, high = mode_seeking.noise_range(build_schedule(settings))
    need = (
        f"between {low / spread:.3g} and {high / spread:.3g}, also in the last round: the noise levels of the model, "
        "over the spread of the training images"
    )
    check(low <= last and first <= high, name, noise, need)
    return mode_seeking.noise_levels(first, rounds, last)


def build_mode_generator(settings: Settings, noise_levels: np.ndarray, starts: Starts | None) -> ModeGenerator:
    """The generator of a run of mode seeking, from the images that `starts` returns; None: from noise."""
    program = build_mode_program(settings, from_noise=starts is None)
    return ModeGenerator(program=program, rounds=noise_levels, starts=starts)


@functools.lru_cache(maxsize=4)  # so that runs that differ in their rounds, and the twin's, compile once
def build_request_program(settings: Settings, last_steps: int) -> RequestProgram:
    """An API's rounds of noise and its sampler's last steps; the parameters are those of build_denoise."""
    return RequestProgram(
        denoise=build_denoise(settings),
        encode=build_encode(settings),
        decode=build_decode(settings),
        table=build_step_table(settings, settings.sampler).last(last_steps),
        shape=image_shape(settings),
        batch_size=settings.sampler.batch_size,
    )


def build_request_generator(
    settings: Settings, last_steps: int, rounds: int, key: jax.Array, starts: Starts
) -> ModeGenerator:
    """The generator of a run of mode seeking by an API, from the images that `starts` returns.

    Args:
      settings: of the run.
      last_steps: of the sampler, in each round.
      rounds: number of rounds.
      key: the typed key of the noise that the API adds, and draws.
      starts: the images to start from.
    """
    program = build_request_program(settings, last_steps)
    return ModeGenerator(program=program, rounds=(key, np.int32(rounds)), starts=starts)


def search_order(settings: Settings) -> Order:
    """Which search and generation each image of the black-box search belongs to."""
    return Order(searches=settings.black_box.searches, population=settings.black_box.population)


@functools.lru_cache(maxsize=4)
def build_search_program(settings: Settings, classifier: Classifier) -> SearchProgram:
    """The parts of the black-box search; the parameters are those of build_denoise, and "classifier".

    The classifier of a model of latents sees those of the image, so that the attacker needs their encoder too. A search
    over label embeddings needs an API that takes these, or a weight for each label.
    """
    encode, target, denoise = build_encode(settings), build_target(settings), build_denoise(settings)
    labels = settings.search_genome == LABEL

    def log_prob(params: Any, images: jax.Array) -> jax.Array:
        x = encode(params, images)
        return log_probs(classifier, params["classifier"], x, jnp.zeros(len(x), jnp.int32))

    def mixed(params: Any, x: jax.Array, t: jax.Array, genomes: jax.Array) -> jax.Array:
        return label_table.predict(target.network, params["dpm"], x, t, genomes)

    return SearchProgram(
        denoise=mixed if labels else denoise,
        log_prob=log_prob,
        decode=build_decode(settings),
        table=build_step_table(settings, settings.sampler),
        shape=sampled_shape(settings),
        batch_size=settings.sampler.batch_size,
        labels=target.num_labels if labels else 0,
    )


def build_search(program: SearchProgram, own: BlackBox, key: jax.Array, classes: int, stored: Stored) -> GeneticSearch:
    """The black-box search with its settings.

    Args:
      program: by build_search_program.
      own: the settings.
      key: the typed key of the classes that are looked for, and of parents and children.
      classes: of the classifier.
      stored: see GeneticSearch.
    """
    order = Order(searches=own.searches, population=own.population)
    rates = Rates(parents=own.parents, crossover=own.crossover, mutation=own.mutation)
    chosen = targets(key, own.searches, classes)
    return GeneticSearch(program, order, rates, targets=chosen, key=key, stored=stored)
