"""Makes the parts of a real chain: the default networks of the model store, under a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Self

from keyface.configs.schema import load_preset
from keyface.engines.card_frame import CardFrame
from keyface.engines.chain_network import open_chain_network
from keyface.engines.engine import Engine, ForwardingEngine
from keyface.engines.store import ModelStore
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import F32
from keyface.pipeline.faces.analyse import AnalyseOptions, Analyser
from keyface.pipeline.faces.detect import DetectOptions, YuNetDetector
from keyface.pipeline.faces.landmarks import LiteRtLandmarker
from keyface.pipeline.faces.recognise import MOBILEFACENET, Recogniser
from keyface.pipeline.paste.on_card import CardPut
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.people.book import IdentityBook
from keyface.pipeline.people.identity import Identities, IdentityOptions
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.projector import Projector
from keyface.pipeline.people.virtual import IdentityBasis, VirtualIdentities
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.reenact.keypoints import KeypointModel
from keyface.pipeline.reenact.likeness import load_cohort
from keyface.pipeline.reenact.motion import MotionMap
from keyface.pipeline.reenact.puppet import Actor, Puppet, ReenactEngines, SecondRecogniser, WarpEngines
from keyface.pipeline.reenact.reenactor import Reenactor
from keyface.pipeline.reenact.warp_puppet import make_actor
from keyface.pipeline.sample.portrait import GeneratedPortrait

_ANALYSIS_MODELS = ("yunet_dynamic", "face_mesh", "face_blendshapes", "sface_fast")
_DATA_MODELS = ("motion_map", "identity_basis", "projector", "recogniser_cohort")
_SECOND_RECOGNISER = "mobilefacenet"
_WARP_NETWORKS = ("warp_source", "warp_motion", "warp_decode")
_WARP_MODELS = ("keypoints", *_WARP_NETWORKS)

OpenNetwork = Callable[[str], Engine]


def model_names(options: ProcessOptions) -> tuple[str, ...]:
    """The models that a chain with these options needs."""
    if options.redact_only:
        return _ANALYSIS_MODELS
    warp = _WARP_MODELS if options.reenactor_used == "warp" else ()
    generator = f"synthesis_{options.generator_px}"
    return (*_ANALYSIS_MODELS, _SECOND_RECOGNISER, generator, *_DATA_MODELS, *warp)


def network_opener(store: ModelStore, options: ProcessOptions) -> OpenNetwork:
    """Opens networks of the store by name, on the calling thread, as the options say."""
    engine_options = load_preset(options.preset).engines
    if options.threads:
        engine_options = replace(engine_options, threads=options.threads, threads_by_model={})

    def open_network(name: str) -> Engine:
        return open_chain_network(store, name, backend=options.backend, options=engine_options)

    return open_network


def make_parts(
    store: ModelStore,
    key: Key | None,
    options: ProcessOptions,
    *,
    open_network: OpenNetwork | None = None,
    is_still: bool = False,
    analyse: AnalyseOptions | None = None,
    identity: IdentityOptions | None = None,
    book: IdentityBook | None = None,
) -> ChainParts:
    """The parts of a chain for one source. No network is opened before the stages are.

    Args:
        store: has the models of `model_names`.
        key: decides the virtual faces; not needed, and not used, with `redact_only`.
        open_network: None opens networks of the store; see `EnginePool` to share them.
        is_still: for photos, where there is no second frame to find a face in: smaller faces are looked for.
        analyse, identity: options other than the usual ones, for live use.
        book: knows people from before; the caller ends its clips and closes it.
    """
    network = open_network or network_opener(store, options)

    def recogniser() -> Recogniser:
        return Recogniser(network("sface_fast"))

    analyse_options = analyse or AnalyseOptions()
    if is_still:
        analyse_options = AnalyseOptions(is_still=True, detect=DetectOptions(min_face_input_px=32))
    card = CardFrame() if options.frames_on_card else None
    analyser = Analyser(
        analyse_options,
        open_detector=lambda: YuNetDetector(network("yunet_dynamic"), analyse_options.detect, card=card),
        open_landmarker=lambda: open_landmarker(network, card),
        open_recogniser=lambda: Recogniser(network("sface_fast"), card=card),
        card=card,
    )
    if options.redact_only:
        return ChainParts(analyse=analyser, observer=None, reenact=None, paste=Paster())
    if key is None:
        raise ValueError("chain: got no key, and redact_only is not asked for")

    basis = IdentityBasis.load(store.path("identity_basis"))
    identities = Identities(recogniser, identity, book=book, cohort=basis.cohort)
    virtual = VirtualIdentities(key, basis, Projector.load(store.path("projector")))
    cohort = load_cohort(store.path("recogniser_cohort"))
    reenactor = Reenactor(
        lambda: replace(
            open_reenact_engines(network, options), second=open_second_recogniser(network, cohort)
        ),
        MotionMap(store.path("motion_map")),
        basis,
        identities,
        virtual,
        keypoints=load_keypoints(store, options),
    )

    on_loss = load_preset(options.preset).engines.on_device_loss
    put = CardPut(on_loss=on_loss) if options.frames_on_card else None

    def release() -> None:
        identities.teach_book()
        reenactor.release()

    return ChainParts(
        analyse=analyser, observer=identities, reenact=reenactor, paste=Paster(card=put), release=release,
        reenactor=options.reenactor_used,
    )  # fmt: skip


def open_landmarker(network: OpenNetwork, card: CardFrame | None = None) -> LiteRtLandmarker:
    """The chain's landmarker."""
    return LiteRtLandmarker(network("face_mesh"), network("face_blendshapes"), card=card)


def open_reenact_engines(network: OpenNetwork, options: ProcessOptions) -> ReenactEngines:
    """What shows virtual faces as the options say."""
    generator, looker = network(f"synthesis_{options.generator_px}"), open_landmarker(network)
    recogniser = Recogniser(network("sface_fast"))
    if options.reenactor_used == "latent":
        return ReenactEngines(generator, looker, recogniser)
    warp = WarpEngines(*(network(name) for name in _WARP_NETWORKS))
    return ReenactEngines(generator, looker, recogniser, warp)


def open_second_recogniser(network: OpenNetwork, cohort: F32) -> SecondRecogniser:
    """What is asked besides SFace how like the driver a face is."""
    return SecondRecogniser(Recogniser(network(_SECOND_RECOGNISER), MOBILEFACENET), cohort)


def load_keypoints(store: ModelStore, options: ProcessOptions) -> KeypointModel | None:
    """Of the warping reenactor; None for the other. Raises ModelStoreError."""
    if options.reenactor_used == "latent":
        return None
    return KeypointModel.load(store.path("keypoints"))


def make_chain_actor(
    engines: ReenactEngines, store: ModelStore, basis: IdentityBasis, options: ProcessOptions
) -> Actor:
    """What the chain shows virtual people with, outside the chain."""
    motion = MotionMap(store.path("motion_map"))
    return make_actor(engines, motion, basis.resting, load_keypoints(store, options))


@contextmanager
def open_portrait(
    store: ModelStore, number: int, options: ProcessOptions | None = None
) -> Iterator[GeneratedPortrait]:
    """A generated person on the calling thread, for sample clips; closed on leaving.

    Args:
        number: which person.

    Raises:
        EngineError: a network is missing, or this number shows no face.
    """
    options = options or ProcessOptions()
    network = network_opener(store, options)
    with ExitStack() as stack:
        generator = stack.enter_context(network(f"synthesis_{options.generator_px}"))
        landmarker = open_landmarker(network)
        stack.callback(landmarker.close)
        recogniser = Recogniser(network("sface_fast"))
        stack.callback(recogniser.close)
        engines = ReenactEngines(generator, landmarker, recogniser)
        puppet = Puppet(engines, MotionMap(store.path("motion_map")))
        yield GeneratedPortrait(puppet, IdentityBasis.load(store.path("identity_basis")), number)


class EnginePool:
    """Opens each network once and lends it to one chain after the other, all on one thread.

    A context manager: leaving it closes the networks; closing a lent one only gives it back.
    """

    def __init__(self, open_network: OpenNetwork) -> None:
        self._open_network = open_network
        self._engines: dict[str, Engine] = {}

    def __call__(self, name: str) -> Engine:
        """The network, opened if it is not yet."""
        if name not in self._engines:
            self._engines[name] = self._open_network(name)
        return _Lent(self._engines[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()


class _Lent(ForwardingEngine):
    """An engine that somebody else closes."""

    def warm_up(self) -> None:
        """Nothing: the engine is warm after its first photo."""

    def close(self) -> None:
        """Nothing: the pool closes it."""
