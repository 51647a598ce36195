"""Publishing a prepared dataset: Parquet shards, a card and a manifest."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from filelock import FileLock

from datasets_builders import hub, prepared, registry, storage
from datasets_builders.errors import UserError
from datasets_builders.hub_card import hub_licence
from datasets_builders.hub_export import export
from datasets_builders.hub_publish import LocalFile, Parcel, Publication, Pushed, local_file
from datasets_builders.manifest import MANIFEST, read_manifest

logger = logging.getLogger(__name__)


def push(
    name: str,
    repo: str,
    private: bool = False,
    have_rights: bool = False,
    say: Callable[[str], None] = logger.warning,
) -> Pushed:
    """Publishes a dataset with its configs as one repository on the Hub.

    Files go up one by one and become visible with one commit at the end. Interrupted, the same call goes on: what
    is on the Hub already is not sent again.

    Args:
        name: Name of a dataset that is not derived.
        repo: `ORG/NAME` of the repository; it is created unless it is there.
        private: Create it for members only.
        have_rights: Publish although the catalogue knows no licence that allows it.
        say: Told the plan, in words, before anything is sent.

    Raises:
        UserError: The licence forbids it, nobody is logged in, the repository holds something else, or the Hub
            cannot be reached or refuses.
    """
    card = registry.card(name)
    if card.origin == "own":
        raise UserError(
            f"{name} is a set of your own images and stays on this machine.\n"
            "  To publish a dataset, give it a place in the catalogue: docs/extending.md"
        )
    command = f"python -m datasets_builders push {card.dataset} --repo {repo}" + " --private" * private
    if card.config:
        raise UserError(f"{name} is a config of {card.dataset} and published with it: {command}")
    hub.check_repo(repo)
    if hub_licence(card.licence) is None and not have_rights:
        raise UserError(
            f"{name} must not be published: its licence, {card.licence!r} ({card.homepage}), is not known to allow "
            f"that.\n  If you have the rights, say so: {command} --i-have-the-rights"
        )
    command += " --i-have-the-rights" * have_rights
    hub.require_login(command)
    built = prepared.prepare(name).manifest
    if built.partial:
        raise UserError(f"{name} is a partial build on this machine; only whole datasets are published.")
    folder = storage.home() / "hub" / "push" / f"{repo.replace('/', '--')}--{name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        export(card, built, repo, folder)
        try:
            manifest = read_manifest(folder)
            assert manifest is not None, "`export` wrote it"
            files = {
                path: LocalFile(folder / path, known["bytes"], known["sha256"])
                for path, known in manifest.files.items()
            } | {MANIFEST: local_file(folder / MANIFEST)}
            parcel = Parcel(card.name, card.title, card.licence, files, folder.parent)
            done = Publication(parcel, repo, private, say).publish()
        except UserError:
            raise
        except hub.ERRORS as error:
            again = f"  Nothing half is visible there. To go on, without sending anything twice: {command}"
            raise hub.explain(error, repo, f"publish {name}", again) from error
        shutil.rmtree(folder)
    return done
