"""The network: a namespace for each machine, all on one bridge, and what can be wrong with the links between them.

The machine that runs the test has an address on the bridge, too, the *seat*: from there it sees everybody whatever is
cut, since cuts are between named nodes only. Nothing routes between the bridge and the world.

A cut is a pair of nodes, one direction: the second drops what comes from the first, or refuses it as if nothing
listened (an RST), be it everything or only what is sent to the ports of a peer's services. Several faults may have cut
the same pair, or slowed the same node: it is whole when all of them have taken that back.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Literal

from tests.chaos.slot import Slot

SEAT = 254
"""The last number of the seat's address."""

Pair = tuple[str, str]
"""From, to."""
Verdict = Literal["drop", "refuse", "refuse services"]
_RULES: Mapping[Verdict, str] = {
    "drop": "ip saddr {{ {} }} drop; ",
    # But for what is refused itself: two that refuse each other hear so.
    "refuse": "ip saddr {{ {} }} tcp flags & rst == 0 reject with tcp reset; ",
    "refuse services": "ip saddr {{ {} }} tcp dport {{ 5432, 5433, 12345 }} reject with tcp reset; ",
}


class NetworkFailed(Exception):
    """A command for the network failed; the message has its words."""


def between(some: Iterable[str], others: Iterable[str]) -> list[Pair]:
    """Both directions between each of `some` and each of `others`."""
    pairs = [(one, other) for one, other in product(some, others) if one != other]
    return pairs + [(other, one) for one, other in pairs]


class Network:
    """The namespaces of `nodes`, in the slot, which removes them. `start` makes them."""

    def __init__(self, slot: Slot, nodes: Sequence[str]) -> None:
        self._slot = slot
        self.nodes: Mapping[str, str] = {name: f"{slot.network}.{number}" for number, name in enumerate(nodes, 1)}
        """Addresses by name."""
        self._cuts: Counter[tuple[Pair, Verdict]] = Counter()
        self._slow: defaultdict[str, list[int]] = defaultdict(list)
        self._lock = asyncio.Lock()

    @property
    def seat(self) -> str:
        return f"{self._slot.network}.{SEAT}"

    def inside(self, node: str) -> tuple[str, ...]:
        """What to put before a command to have it run on a node."""
        return ("nsenter", f"--net=/run/netns/{self._slot.namespace(node)}", "--")

    async def start(self) -> None:
        bridge = self._slot.bridge
        lines = [f"link add {bridge} type bridge", f"addr add {self.seat}/24 dev {bridge}", f"link set {bridge} up"]
        for node in self.nodes:
            link, namespace = self._slot.link(node), self._slot.namespace(node)
            lines += [
                f"netns add {namespace}",
                f"link add {link} type veth peer name eth0 netns {namespace}",
                f"link set {link} master {bridge} up",
            ]
        await _command("ip", "-batch", "-", given="\n".join(lines))
        for node, address in self.nodes.items():
            inside = ["link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"]
            await _command("ip", "-n", self._slot.namespace(node), "-batch", "-", given="\n".join(inside))

    async def cut(self, pairs: Iterable[Pair], verdict: Verdict = "drop") -> None:
        """From now on these packets vanish, or are refused."""
        await self._change(pairs, verdict, 1)

    async def mend(self, pairs: Iterable[Pair], verdict: Verdict = "drop") -> None:
        """Take back one `cut` of each of these pairs."""
        await self._change(pairs, verdict, -1)

    async def _change(self, pairs: Iterable[Pair], verdict: Verdict, difference: int) -> None:
        pairs = list(pairs)
        async with self._lock:
            for pair in pairs:
                self._cuts[pair, verdict] += difference
            await asyncio.gather(*(self._filter(node) for node in {to for _, to in pairs}))

    async def _filter(self, node: str) -> None:
        """Replace a node's rules by what is cut now, in one step (nft(8), a file is one transaction)."""
        rules = ""
        for verdict, rule in _RULES.items():
            cut = [
                one for ((one, to), kind), count in self._cuts.items() if (to, kind) == (node, verdict) and count > 0
            ]
            if cut:
                rules += rule.format(", ".join(sorted(self.nodes[one] for one in cut)))
        chain = f"chain cuts {{ type filter hook input priority 0; {rules} }}"
        text = f"table inet chaos\ndelete table inet chaos\ntable inet chaos {{ {chain}; }}\n"
        await _command(*self.inside(node), "nft", "-f", "-", given=text)

    async def slow(self, node: str, bits: int) -> None:
        """From now on what the node sends goes at so many bits a second at most, with a short queue (tc-tbf(8))."""
        self._slow[node].append(bits)
        await self._shape(node)

    async def hasten(self, node: str, bits: int) -> None:
        """Take back one `slow` of it."""
        self._slow[node].remove(bits)
        await self._shape(node)

    async def _shape(self, node: str) -> None:
        tc = (*self.inside(node), "tc", "qdisc")
        async with self._lock:
            if self._slow[node]:
                rate = ("rate", f"{min(self._slow[node])}bit", "burst", "16kb", "latency", "300ms")
                await _command(*tc, "replace", "dev", "eth0", "root", "tbf", *rate)
            else:
                await _command(*tc, "del", "dev", "eth0", "root")


async def _command(*argv: str, given: str = "") -> None:
    def run() -> None:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise NetworkFailed(f"{' '.join(argv)}: {done.stderr.strip()}")

    await asyncio.to_thread(run)
