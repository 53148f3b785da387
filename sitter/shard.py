"""The words of the rules, as one peer sees its shard: serving, ready, attached, proof, upstream, valid promote.

Each is a question about a `View` that holds a cluster state, and each has one definition, here. Nothing is decided.
A Manatee 2 peer says nothing of itself: it is taken to be serving, ready and attached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from manatee.cluster import ClusterState, Comparison, Peer, PeerStatus, Promote, Role
from manatee.lsn import Lsn
from sitter.view import Link, Present, View


@dataclass(frozen=True)
class Shard:
    """A view and the state in it."""

    view: View
    state: ClusterState

    @cached_property
    def i_am_primary(self) -> bool:
        return self.state.primary.id == self.view.me.id

    @cached_property
    def follows(self) -> bool:
        """This peer is a link of the chain below the primary."""
        return self.state.role_of(self.view.me.id) in (Role.SYNC, Role.ASYNC)

    @cached_property
    def i_am_present(self) -> bool:
        return self.view.me.id in self.view.present

    def present(self, peer: Peer) -> bool:
        return peer.id in self.view.present

    # --- What peers say -----------------------------------------------------------------------------------------

    def _heard(self, peer: Peer) -> Present | None:
        """The peer in the active list, if what it says is of this generation, or it is a Manatee 2 peer."""
        one = self.view.present.get(peer.id)
        if one is None or not one.promises_status:
            return one
        return one if one.status and one.status.generation == self.state.generation else None

    def said(self, peer: Peer) -> PeerStatus | None:
        """What a present peer says of itself under this generation."""
        one = self._heard(peer)
        return one.status if one else None

    def serving(self, peer: Peer) -> bool:
        """Present, its PostgreSQL online, its data proven."""
        if peer.id == self.view.me.id:
            return self.i_serve
        one = self._heard(peer)
        return one is not None and (not one.promises_status or one.status is None or one.status.serving)

    def ready(self, peer: Peer) -> bool:
        """Serving, and streaming from the upstream that the rules give it."""
        one = self._heard(peer)
        return one is not None and (not one.promises_status or one.status is None or one.status.ready)

    def attached(self, peer: Peer, sealed: Lsn | None) -> bool:
        """Serving, and streaming from my PostgreSQL, with all that I have sealed flushed, and nothing I have lost."""
        if not self.serving(peer):
            return False
        if not self.view.present[peer.id].promises_status:
            return True
        database = self.view.database
        flushed = None if peer.id in database.ahead else database.attached.get(peer.id)
        return flushed is not None and (sealed is None or flushed >= sealed)

    def proof_of(self, peer: Peer) -> int:
        """What the peer says is proven of its data; of a Manatee 2 peer all, until the shard has been adopted."""
        one = self._heard(peer)
        if one is None:
            return 0
        if not one.promises_status:
            return self.state.generation if self.view.cluster is None else 0
        return one.status.proof if one.status else 0

    # --- This peer ----------------------------------------------------------------------------------------------

    @cached_property
    def needed_proof(self) -> int:
        """What a standby must prove to count. Never less than 1: in generation 1, too, a restored peer proves first."""
        return max(1, self.state.generation - 1)

    @cached_property
    def i_serve(self) -> bool:
        return self.view.database.online and self.view.memory.proof >= self.needed_proof

    @cached_property
    def i_stream(self) -> bool:
        """From the upstream that the rules give; while a promote moves it to the primary, from either."""
        database = self.view.database
        given = {self.upstream.id, self.above[0].id}
        return database.streaming and database.upstream in given

    @cached_property
    def followed(self) -> Peer | None:
        """The link above that PostgreSQL is set to follow."""
        return next((peer for peer in self.above if peer.id == self.view.database.upstream), None)

    @cached_property
    def strays(self) -> bool:
        """It takes WAL from somebody else than its upstream, who may not be on this generation's history.

        What is compared meanwhile may not stay so. With proof of this generation, whom we follow has it, too.
        """
        elsewhere = self.view.database.upstream not in (None, self.upstream.id)
        return elsewhere and self.view.memory.proof < self.state.generation

    @cached_property
    def above(self) -> tuple[Peer, ...]:
        """The links of the chain above this peer, nearest first."""
        chain = self.state.assigned
        here = next(index for index, peer in enumerate(chain) if peer.id == self.view.me.id)
        return chain[:here][::-1]

    @cached_property
    def upstream(self) -> Peer:
        """The link above, or while that is absent or long unready the nearest that serves in its stead."""
        above, asked = self.above, self.promote
        proven = self.view.memory.proof >= self.state.generation  # else it would have to stop following for it
        if asked and asked.id == self.view.me.id and promotes_to_sync(asked) and proven:
            return self.state.primary
        nearest = self.view.present.get(above[0].id)
        if self.incomparable_with is not None:
            further = above[self.incomparable_with + 1 :]
            return _first(further, self.ready) or _first(further, self.serving) or above[self.incomparable_with]
        if self.stranded and above[1:]:
            return _first(above[1:], self.ready) or _first(above[1:], self.serving) or above[0]
        if nearest and (nearest.unready_for < self.view.limits.sync_grace or self.ready(above[0])):
            return above[0]
        stand_in = _first(above, self.ready) or _first(above, self.serving)
        return stand_in or above[0]

    @cached_property
    def stranded(self) -> bool:
        """Serving, and not streaming for long: a link above that was restored may lack the WAL that we need next."""
        me = self.view.present.get(self.view.me.id)
        return self.i_serve and me is not None and me.unready_for >= 3 * self.view.limits.sync_grace

    @cached_property
    def starves(self) -> bool:
        """It follows the primary, and has not streamed from it for some seconds; less than a sync is replaced after.

        Below a standby that is nothing to wonder at: one that has just started does not know yet how much it has.
        """
        me, database = self.view.present.get(self.view.me.id), self.view.database
        follows = database.online and not database.streaming and database.upstream == self.state.primary.id
        return follows and me is not None and me.unready_for >= self.view.limits.sync_grace / 4

    @cached_property
    def incomparable_with(self) -> int | None:
        """Which link above does not hold the WAL that data without proof would have to be compared with, and never
        will: it was restored later than we were. They cannot run to catch up with it, but one further up may hold it.
        """
        found = self.view.database.incomparable
        proven = self.view.memory.proof >= self.needed_proof
        if proven or found is None or found.generation != self.state.generation:
            return None
        return next((at for at, peer in enumerate(self.above) if peer.id == found.upstream), None)

    @cached_property
    def restore_sources(self) -> tuple[Peer, ...]:
        """The sync's data for an async or who is deposed, the primary's for the sync; then the other serving links."""
        chain = self.state.assigned
        here = next((at for at, peer in enumerate(chain) if peer.id == self.view.me.id), len(chain))
        above, below = chain[:here][::-1], chain[here + 1 :]
        first = above[0] if len(above) == 1 else above[-2]
        ordered = (first, *(peer for peer in (*above, *below) if peer.id != first.id))
        return tuple(peer for peer in ordered if self.serving(peer))

    def leads(self, source: Peer) -> bool:
        """This peer is the primary, and is there."""
        return self.present(source) and source.id == self.state.primary.id

    def may_give(self, source: Peer) -> bool:
        """A restore from this peer may go on: it is there, and has not been deposed."""
        return self.present(source) and any(peer.id == source.id for peer in self.state.assigned)

    def vouched_for(self, upstream: Peer) -> bool:
        """Proof of this generation says that our data are a prefix of its primary's: who follows another link of the
        chain, and so has compared with that, may follow the primary instead at once.
        """
        proofs = self.view.memory.proof, self.proof_of(upstream)
        leads = self.leads(upstream) and self.serving(upstream)
        return leads and self.followed is not None and min(proofs) >= self.state.generation

    def link_to(self, upstream: Peer) -> Link | None:
        """How our WAL compared with this upstream's under this generation."""
        link = self.view.database.link
        if link and link.upstream == upstream.id and link.generation == self.state.generation:
            return link
        return None

    # --- What operators ask for ---------------------------------------------------------------------------------

    @cached_property
    def promote(self) -> Promote | None:
        """The promote request, if it is valid: of this generation, in time, of a ready peer that holds the role."""
        asked, state = self.state.promote, self.state
        if asked is None or state.frozen or not self.in_time(asked):
            return None
        holder: Peer | None = None
        if asked.role == Role.SYNC:
            holder = state.sync
        elif asked.role == Role.ASYNC and type(asked.async_index) is int:
            holder = dict(enumerate(state.asyncs)).get(asked.async_index)
        return asked if holder and holder.id == asked.id and self.ready(holder) else None

    def in_time(self, asked: Promote) -> bool:
        """The request is of this generation and has not expired."""
        same = type(asked.generation) is int and asked.generation == self.state.generation
        return same and asked.expires() > self.view.now

    @cached_property
    def takeover_obstacle(self) -> str | None:
        """Why the sync could not take over from the primary now."""
        state = self.state
        if state.frozen:
            return "the shard is frozen"
        if state.sync is None or not self.serving(state.sync):
            return "the sync is not serving"
        if not any(self.serving(peer) for peer in state.asyncs):
            return "no async is serving, to become the new sync"
        return None

    @cached_property
    def unreached(self) -> bool:
        """No peer has a replication connection with this primary, although the sync, by its word, could take over."""
        return self.i_am_primary and not self.view.database.connected and self.takeover_obstacle is None

    @cached_property
    def out_of_reach(self) -> bool:
        """Nobody has reached this primary for so long that who could has tried: an async does after `sync_grace`, when
        the sync is unready, to become the sync.
        """
        view, limits = self.view, self.view.limits
        return view.unreached_for >= 2 * limits.sync_grace and view.returned_for >= limits.retry_pause

    @cached_property
    def sync_contradicts(self) -> Comparison | None:
        """How the sync's data stand to the primary's, if it says that they are no prefix, or is found to have more.

        Data that prove nothing contradict nobody: they were restored, or are from before an operator's word.
        """
        sync = self.state.sync
        said = self.said(sync) if sync else None
        if sync is None or said is None or said.proof < self.needed_proof:
            return None
        if said.compares in (None, Comparison.PREFIX):
            return Comparison.AHEAD if sync.id in self.view.database.ahead else None
        return said.compares


def promotes_to_sync(asked: Promote) -> bool:
    return bool(asked.role == Role.ASYNC and asked.async_index == 0)


def _first(peers: Iterable[Peer], holds: object) -> Peer | None:
    assert callable(holds)
    return next((peer for peer in peers if holds(peer)), None)
