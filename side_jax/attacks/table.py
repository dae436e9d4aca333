"""The table of attacks: one entry says what guides an attack, what that learns from, and what reports call it.

An attack with a classifier trains it as the unit of work `surrogate/<classifier>`; the classifier's entry says from
which images and labels. Nothing else in the package knows an attack or a classifier by its name.
"""

import dataclasses

# Okabe and Ito's colours (2008), which people with any colour vision tell apart; without yellow, too light for lines.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, BLACK = "#e69f00", "#56b4e9", "#000000"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#8c8c8c"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier that guides attacks.

    Attributes:
      name: of its unit of work, `surrogate/<name>`.
      images: what it learns from: "synthetic", "heldout" or "members".
      stream: the number of its random stream, which no other stream may have; see settings/random_streams.py.
      noised: whether it is trained on noised images and depends on time; else it sees clean images alone.
      label_control: what a control does to the pseudo-labels: "random" draws them once, with the same sizes; "shuffled"
        shuffles them anew for every batch, so that nothing can be learned; "" leaves them as they are.
      section: the section of the settings that says how it is trained.
    """

    name: str
    images: str
    stream: int
    noised: bool = True
    label_control: str = ""
    section: str = "surrogate"

    @property
    def true_labels(self) -> bool:
        """Whether it learns the members' own labels; else pseudo-labels."""
        return self.images == "members"

    @property
    def distilled(self) -> bool:
        """Whether it can learn from a teacher of clean images (surrogate.objective)."""
        return self.noised and not self.true_labels

    @property
    def owner_only(self) -> bool:
        """Whether only the owner of the data can train it: it needs members or held-out images."""
        return self.images != "synthetic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to draw images; all attacks use the same model and the same starting noise.

    Attributes:
      name: of the attack, in configs, tables and folders.
      description: what guides it, for the note below the report's table.
      phrase: its name in sentences.
      guide_phrase: what guides it, in sentences, where that is not its phrase.
      colour: of its curves, in every figure.
      marker: of its points, one of matplotlib's; no other attack has the same colour and marker.
      classifier: what guides it, if a classifier does.
      own_labels: whether the labels that the model was trained with guide it, without a classifier.
      weak: whether a weaker model guides it, away from that model: an earlier checkpoint of the target, or a model that
        is trained on the target's own samples.
      adapted: whether it draws from the target with low-rank adapters and a table of labels, fitted to the target's own
        samples by their pseudo-labels (models/adapters.py); trained as the unit of work `surrogate/<attack>`. It has
        guidance scales of its own, of which 1 is no guidance.
      at_x0: whether the classifier looks at the predicted clean image x0_hat; else at x_t.
      control: whether no attacker can run it, or would: reports set it apart and it never decides the verdict.
      baseline: whether it is what other attacks are compared with, apart from plain sampling.
      random_control: the control that shows whether this attack's gain comes from its labels; "" if there is none.
      default: whether the default config runs it.
      twin: whether it draws from the twin: a model trained like the target, on held-out images in place of members. It
        has never seen a member, so that its matches with members are those of chance.
      searches: whether it searches starting noise or label embeddings whose images its classifier, of clean images,
        gives a target class (diffusion/genetic.py). It needs an answer of the model for each image, and no more.
      seeks_modes: whether it starts from images of another attack, or from noise, and iterates the denoiser on them
        (diffusion/mode_seeking.py). It runs from each of modes.starts, at each of modes.noise_levels and modes.rounds.
      starts_from: of mode seeking, the attack whose images it starts from; "": each of modes.starts.
      renoises: whether its rounds are requests to an API that adds noise to an image and samples from there, by the
        last steps of its sampler. It runs at each of black_box_modes.last_steps and black_box_modes.rounds.
    """

    name: str
    description: str
    phrase: str
    colour: str
    marker: str = "o"
    guide_phrase: str = ""
    classifier: Classifier | None = None
    own_labels: bool = False
    weak: bool = False
    adapted: bool = False
    at_x0: bool = False
    control: bool = False
    baseline: bool = False
    random_control: str = ""
    default: bool = False
    twin: bool = False
    searches: bool = False
    seeks_modes: bool = False
    starts_from: str = ""
    renoises: bool = False

    @property
    def guided(self) -> bool:
        """Whether anything guides its sampling, step by step."""
        return self.own_labels or self.weak or self.adapted or (self.classifier is not None and not self.searches)

    @property
    def guide(self) -> str:
        """What guides it, in sentences."""
        return self.guide_phrase or self.phrase

    @property
    def needs_api_only(self) -> bool:
        """Whether images that the model draws on request are all it needs of the model: no weights, no gradients."""
        return not (self.twin or self.guided or (self.seeks_modes and not self.renoises))

    @property
    def data_free(self) -> bool:
        """Whether it needs neither training nor held-out images; a model's own labels come with it."""
        return not self.twin and (self.classifier is None or not self.classifier.owner_only)


_CONDITIONAL = Classifier(name="conditional", images="members", stream=5, noised=False, section="conditional")
_SIDE = Classifier(name="side", images="synthetic", stream=4)
# Trained as the conditional baseline's, on pseudo-labels of the model's own samples in place of the members' labels.
_BLACK_BOX = Classifier(name="black_box", images="synthetic", stream=27, noised=False, section="conditional")
_ORACLE = Classifier(name="oracle", images="members", stream=12)

PLAIN = Attack(
    name="unconditional",
    description="no guidance",
    phrase="plain sampling",
    colour=BLACK,
    marker="o",
    default=True,
)
# Images from elsewhere, as the audit of images alone has them; no config can ask for it.
GIVEN = Attack(
    name="samples", description="the samples given", phrase="the samples given", colour=VERMILLION, marker="s"
)

_ENTRIES = (
    PLAIN,
    Attack(
        name="conditional",
        description="a classifier of clean members by their true labels, shown x_t",
        phrase="the conditional baseline",
        colour=ORANGE,
        marker="s",
        classifier=_CONDITIONAL,
        baseline=True,
        default=True,
    ),
    Attack(
        name="conditional_x0",
        description="the same classifier, shown the predicted clean image",
        phrase="the conditional baseline (shown the predicted clean image)",
        colour=ORANGE,
        marker="D",
        classifier=_CONDITIONAL,
        at_x0=True,
        baseline=True,
    ),
    Attack(
        name="conditional_model",
        description="the conditional target itself: its own labels, by classifier-free guidance",
        phrase="classifier-free guidance",
        guide_phrase="its own labels",
        colour=PURPLE,
        marker="P",
        own_labels=True,
    ),
    Attack(
        name="side",
        description="SIDE: pseudo-labels of synthetic images",
        phrase="SIDE",
        colour=BLUE,
        marker="^",
        classifier=_SIDE,
        random_control="side_random",
        default=True,
    ),
    Attack(
        name="side_random",
        description="control: SIDE with random pseudo-labels of the same sizes",
        phrase="SIDE with random pseudo-labels",
        colour=SKY,
        marker="v",
        classifier=Classifier(name="side_random", images="synthetic", stream=9, label_control="random"),
        control=True,
    ),
    Attack(
        name="side_shuffled",
        description="control: SIDE with its pseudo-labels shuffled anew for every batch",
        phrase="SIDE with shuffled pseudo-labels",
        colour=SKY,
        marker="<",
        classifier=Classifier(name="side_shuffled", images="synthetic", stream=10, label_control="shuffled"),
        control=True,
    ),
    Attack(
        name="side_heldout",
        description="control: SIDE with held-out images in place of synthetic ones",
        phrase="SIDE with held-out images",
        colour=SKY,
        marker=">",
        classifier=Classifier(name="side_heldout", images="heldout", stream=11),
        control=True,
    ),
    Attack(
        name="modes",
        description="mode seeking: the denoiser iterated at low noise, from images of another attack",
        phrase="mode seeking",
        colour=VERMILLION,
        marker="o",
        default=True,
        seeks_modes=True,
    ),
    Attack(
        name="black_box",
        description="a genetic search for images of a cluster, over starting noise or a conditional target's label "
        "embeddings: queries alone, no weights",
        phrase="black-box search",
        colour=BLUE,
        marker="s",
        classifier=_BLACK_BOX,
        searches=True,
    ),
    Attack(
        name="black_box_modes",
        description="mode seeking by requests alone: in rounds, the model adds noise to an image and samples it",
        phrase="black-box mode seeking",
        colour=VERMILLION,
        marker="D",
        seeks_modes=True,
        starts_from=PLAIN.name,
        renoises=True,
    ),
    Attack(
        name="extrapolate",
        description="away from a weaker model: an earlier checkpoint, or a model of the target's own samples",
        phrase="extrapolation from a weaker model",
        guide_phrase="a weaker model",
        colour=PURPLE,
        marker="D",
        weak=True,
    ),
    Attack(
        name="side_lora",
        description="the target with low-rank adapters, fitted to its own samples by their pseudo-labels",
        phrase="SIDE by low-rank adapters",
        guide_phrase="the labels of low-rank adapters",
        colour=BLUE,
        marker="D",
        adapted=True,
    ),
    Attack(
        name="twin",
        description="control: plain sampling of a model trained alike on held-out images",
        phrase="plain sampling of the twin model",
        colour=GREY,
        marker="s",
        control=True,
        twin=True,
    ),
    Attack(
        name="modes_twin",
        description="control: mode seeking in a model trained alike on held-out images",
        phrase="mode seeking in the twin model",
        colour=GREY,
        marker="X",
        control=True,
        twin=True,
        seeks_modes=True,
        starts_from="twin",
    ),
    Attack(
        name="black_box_modes_twin",
        description="control: mode seeking by requests alone in a model trained alike on held-out images",
        phrase="black-box mode seeking in the twin model",
        colour=GREY,
        marker="D",
        control=True,
        twin=True,
        seeks_modes=True,
        starts_from="twin",
        renoises=True,
    ),
    Attack(
        name="oracle",
        description="an oracle: a time-dependent classifier of members and their true labels",
        phrase="the oracle",
        colour=GREEN,
        marker="P",
        classifier=_ORACLE,
        control=True,
    ),
)
ATTACKS = {attack.name: attack for attack in _ENTRIES}


def get_attack(name: str) -> Attack:
    """The entry of an attack that a row of results names, images from elsewhere included.

    Raises:
      KeyError: if there is none of that name.
    """
    return GIVEN if name == GIVEN.name else ATTACKS[name]


def known_classifiers() -> dict[str, Classifier]:
    """Every classifier that an attack uses, by name."""
    found = (attack.classifier for attack in ATTACKS.values() if attack.classifier)
    return {classifier.name: classifier for classifier in found}


MODES = ATTACKS["modes"]  # what the monitor watches beside plain samples
ADAPTED = ATTACKS["side_lora"]  # what adapters are trained for
TWIN = ATTACKS["twin"]  # the start of mode seeking in the twin
NOISE = "noise"  # among modes.starts: Gaussian noise in place of an attack's images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One attack with one choice of its parameters.

    Attributes:
      attack: its name.
      scale: the guidance scale; 0 without guidance. Of mode seeking, that of the run that it starts from.
      start: of mode seeking, the attack that it starts from, or NOISE; else "".
      noise: of mode seeking, sigma of the first round; 0 where an API adds the noise, and of other attacks.
      rounds: of mode seeking; else 0.
      last_steps: of mode seeking by an API, the last steps of the sampler in each round; else 0.
    """

    attack: str
    scale: float = 0.0
    start: str = ""
    noise: float = 0.0
    rounds: int = 0
    last_steps: int = 0

    @property
    def guided(self) -> bool:
        """Whether a classifier, labels or a weaker model guide it."""
        return get_attack(self.attack).guided

    @property
    def steered(self) -> bool:
        """Whether guidance changes the predictions of the model; not where an adapted model just has a label."""
        return self.guided and not (get_attack(self.attack).adapted and self.scale == 1)

    @property
    def round_calls(self) -> int:
        """Calls of the network in all its rounds of mode seeking, for one image; else 0."""
        return self.rounds * max(self.last_steps, 1)

    @property
    def start_run(self) -> "Run | None":
        """The run whose images mode seeking starts from; None from noise, and for other attacks."""
        return Run(attack=self.start, scale=self.scale) if self.start not in ("", NOISE) else None

    @property
    def searched(self) -> bool:
        """Whether a search made its images, or those that it starts from, so that they descend from each other."""
        return get_attack((self.start_run or self).attack).searches

    @property
    def name(self) -> str:
        """For folders and tables: side_10, or modes_0.1x20_from_side_10."""
        if self.start:
            origin = self.start_run.name if self.start_run else self.start
            return f"{self.attack}_{self.last_steps or self.noise:g}x{self.rounds}_from_{origin}"
        return f"{self.attack}_{self.scale:g}" if self.guided else self.attack
