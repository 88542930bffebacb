"""Rolls the copies of one role, workers or gateways, from their earlier program files to new ones.

Owns: the order (first a spare copy, then each copy in its place), and going back when a copy does not become ready.
Leaves to others: each step (processes), the order of the roles (roll), the program files of copies (programs).

Going back means that every copy replaced so far gets its earlier program file again. That file names the release's
directory and command; so where releases are installed side by side, the complete earlier release runs afterwards. Where
the code was changed in place, the earlier code is gone: then the copies that were not yet replaced run on, and the
spare copies stay in place of those that failed. But when the new code answers with errors, so do the spare copies: then
everything that runs the new code is stopped, if at least one copy still runs the earlier code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from mesh.deploy.error_gate import ErrorsRise
from mesh.deploy.halt import Halt
from mesh.deploy.processes import Crew
from mesh.errors import SetupError
from mesh.supervisord.control import STOPPED
from mesh.supervisord.programs import Role

#: One copy in this many is replaced at a time, so that rolling many copies takes hardly longer than rolling a few.
PER_STEP: Final = 4


class Copies:
    """The roll of one role.

    Attributes:
        name: of the role.
        registered: its copies are ready when they are in the registry.
    """

    def __init__(
        self,
        crew: Crew,
        role: Role,
        patience_s: float,
        settle_s: float,
        halt: Halt,
        look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """
        Args:
            look: called after each step forward; it raises ErrorsRise when the new copies answer with errors.
        """
        self.name = role.name
        self.registered = not role.single
        self._role = role
        self._crew = crew
        self._patience_s = patience_s
        self._settle_s = settle_s
        self._halt = halt
        self._look = look
        known = crew.processes(role)
        self._before: dict[int, str] = {n: role.text(n) for n in known} | crew.roster.present(role.name)
        #: The current texts of the program files.
        self._texts = dict(self._before)
        # Include copies in a crash loop, and copies that supervisor gave up: the new release may fix them.
        self._numbers = sorted(number for number, process in known.items() if process.state != STOPPED)
        self._at_once = max(1, len(self._numbers) // PER_STEP)
        first = max([*known, crew.roster.count(role.name) - 1], default=-1) + 1
        self._spares = list(range(first, first + self._at_once))
        #: The copies that run with their new file: process -> pid.
        self._new: dict[str, int] = {}
        self._replaced: list[int] = []
        self._failed: list[int] = []
        #: Whether the error gate found that the new copies of this role answer with errors.
        self._faulty = False

    def hold(self) -> None:
        """No effect: the file of each copy already names its release."""

    async def forward(self) -> int:
        """Replace all copies; returns their number."""
        crew, role = self._crew, self._role
        after = {number: role.text(number) for number in range(crew.roster.count(role.name))}
        self._check_socket()
        if role.single:
            for number in self._numbers:
                await self._replace({number: after[number]})
        elif self._numbers:
            # First a single spare copy, to test the release; then as many as are replaced at a time.
            for spares in filter(None, (self._spares[:1], self._spares[1:])):
                await self._place({number: role.text(number) for number in spares})
            for numbers in self._steps([number for number in self._numbers if number in after]):
                await self._replace({number: after[number] for number in numbers})
        # A new service, or more copies than before. Copies that were stopped by hand get their new file and stay
        # stopped.
        if self._numbers or not self._before:
            for numbers in self._steps(sorted(set(after) - set(self._before))):
                await self._place({number: after[number] for number in numbers})
        # Remove the spare copies and any other surplus.
        await self._leave(set(self._texts) - set(after))
        self._texts = after
        crew.keep(role, after)
        return len(self._replaced)

    async def back(self, *, sound: bool = False) -> str:
        """Give every replaced copy its earlier file again, one by one; returns a description of what runs then.

        Args:
            sound: the roll was only interrupted: copies with an unchanged file may start with it again.
        """
        crew, role, name = self._crew, self._role, self.name
        self._halt = Halt()
        self._look = None
        if sound:
            self._new.clear()
            await self._start_again()
        touched = [*self._replaced, *self._failed]
        undone = [number for number in touched if self._before[number] != self._texts[number]]
        if self._failed and not undone and role.single:
            return f"{name} does not run; `mesh logs {name}` shows why"
        if self._failed and not undone:
            # The earlier file is the same, and would start the same code again.
            return await (self._withdraw() if self._faulty else self._stand_in())
        # From now on, copies of the earlier release must become ready.
        self._new.clear()
        if undone and role.single:
            await self._replace({0: self._before[0]})
        elif undone:
            spares = [number for number in self._spares if number in self._texts]
            await self._replace({one: role.renumbered(self._before[undone[0]], undone[0], one) for one in spares})
            for number in reversed(undone):
                await self._replace({number: self._before[number]})
        await self._leave(set(self._texts) - set(self._before))
        gone = [number for number in self._numbers if number not in self._texts]
        self._texts = {number: text for number, text in self._texts.items() if number in self._before}
        for number in gone:
            await self._place({number: self._before[number]})
        self._texts = dict(self._before)
        crew.keep(role, self._before)
        if self._replaced and not undone:
            return f"{name} was replaced already, and runs the current contents of its directory"
        return f"{name} runs as before" if self._before else f"{name} does not run, as before"

    async def _start_again(self) -> None:
        """Start the copies again that were stopped but have not received another file."""
        left = [number for number in self._failed if self._texts[number] == self._before[number]]
        self._failed = [number for number in self._failed if number not in left]
        if left:
            # Some may still be draining.
            await self._crew.drain(self._role, left)
            await self._add({number: self._before[number] for number in left})
            self._replaced += left

    # --- steps --------------------------------------------------------------------------------------------

    def _steps(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(numbers), self._at_once):
            yield numbers[start : start + self._at_once]

    async def _place(self, texts: Mapping[int, str]) -> None:
        """Add copies; they must become ready, and stay so."""
        self._halt.check()
        await self._add(texts)

    async def _add(self, texts: Mapping[int, str]) -> None:
        crew, role = self._crew, self._role
        self._texts |= texts
        crew.keep(role, self._texts)
        crew.start(role, texts)
        names = {role.process(number) for number in texts}
        self._new |= await crew.answering(names, self._patience_s, registered=self.registered)
        await crew.running(self._new, self._settle_s)
        if self._look is not None:
            try:
                await self._look()
            except ErrorsRise as exc:
                self._faulty = exc.details.get("service") in self._services()
                raise

    def _services(self) -> set[str]:
        """The services that the new copies run."""
        known = self._crew.instances()
        return {instance.service for pid in self._new.values() for instance in known.get(pid, ())}

    async def _replace(self, texts: Mapping[int, str]) -> None:
        """Drain copies, and start them with other files."""
        self._halt.check()
        self._failed = list(texts)
        await self._leave(texts)
        await self._add(texts)
        self._failed = []
        self._replaced += [number for number in texts if number not in self._spares]

    async def _leave(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._new.pop(self._role.process(number), None)
        await self._crew.drain(self._role, numbers)

    async def _stand_in(self) -> str:
        """Keep the ready spare copies in place of those that failed. If the spare copies do not run any more, remove
        them and let supervisor retry the failed copies. Copies that were not replaced yet run on."""
        crew, role = self._crew, self._role
        failed = [role.process(number) for number in self._failed]
        spares = [role.process(number) for number in self._spares[: len(failed)]]
        try:
            await crew.running({name: self._new.get(name, 0) for name in spares})
        except SetupError:
            await self._leave(self._spares)
            self._texts = dict(self._before)
            crew.keep(role, self._texts)
            crew.start(role, self._failed)
            return (
                f"the current contents of its directory do not keep running; {', '.join(failed)} will be restarted "
                f"repeatedly, the processes of {self.name} that were not replaced run as before"
            )
        await crew.drain(role, self._failed)
        if len(failed) == 1:
            return f"{failed[0]} is stopped, {spares[0]} runs in its place"
        return f"{', '.join(failed)} are stopped, {', '.join(spares)} run in their place"

    async def _withdraw(self) -> str:
        """Stop the copies that answer with errors, if any copy still runs the earlier code."""
        new = sorted({*self._replaced, *self._failed})
        if set(self._numbers) <= set(new):
            return await self._stand_in()
        await self._leave([*(number for number in self._spares if number in self._texts), *new])
        self._texts = dict(self._before)
        self._crew.keep(self._role, self._texts)
        stopped = ", ".join(self._role.process(number) for number in new)
        return (
            f"{stopped} {'is' if len(new) == 1 else 'are'} stopped, the other processes of {self.name} run as before; "
            "after fixing the code, `mesh up` starts the stopped ones"
        )

    def _check_socket(self) -> None:
        if self._role.socket and self._numbers and not _listens(self._before, self._role.socket):
            raise SetupError(
                f"the address of gateways in mesh.toml is now {self._role.socket.removeprefix('tcp://')}: the socket "
                "cannot change while it is served; `mesh down && mesh up` opens the new one"
            )


def _listens(texts: Mapping[int, str], socket: str) -> bool:
    return any(f"socket={socket}\n" in text for text in texts.values())
