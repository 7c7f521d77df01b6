"""From a ``Site`` to something that can be asked: transport, client and clock, joined."""

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from hpcscale.clock import Clock, SiteClock
from hpcscale.errors import InvalidFileError
from hpcscale.site import Site, TransportConfig, TransportKind, require_host
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.client import SlurmClient
from hpcscale.slurm.transport import Transport


@dataclass
class Connection:
    """A site that can be asked. Nothing is opened before the first question.

    Attributes:
        site: the profile.
        transport: where its commands run.
        client: how its Slurm is asked.
        clock: its controller's time.
    """

    site: Site
    transport: Transport
    client: SlurmClient
    clock: Clock
    _state_dir: str | None = field(default=None, repr=False)

    @property
    def state_dir(self) -> str:
        """Absolute path of the site's state directory there; asked of the site once."""
        if self._state_dir is None:
            from hpcscale.slurm.remote import expand

            self._state_dir = expand(self.transport, self.site.state_dir)
        return self._state_dir

    def close(self) -> None:
        """Drop the connection; the object can be used again."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


def connect(site: Site) -> Connection:
    """Join a site's transport, client and clock; opens nothing yet.

    Raises:
        InvalidFileError: the profile's transport lacks what its kind needs.
        UnreachableError: a lab's site, and no lab is running.
    """
    require_host(site)
    transport = make_transport(site.transport, site.name)
    client = CliClient(
        transport,
        slurm_conf=site.transport.slurm_conf,
        slurm_bin=site.transport.slurm_bin,
        cluster=site.transport.cluster,
    )
    return Connection(site=site, transport=transport, client=client, clock=SiteClock(client.now))


def make_transport(config: TransportConfig, site_name: str) -> Transport:
    """The transport that a profile asks for."""
    if config.kind is TransportKind.LOCAL:
        from hpcscale.slurm.local import LocalTransport

        return LocalTransport()
    if not config.host:
        raise InvalidFileError(
            "key 'host' is missing in [transport]",
            where=f"site {site_name}",
            hint='write host = "login.example.org" in [transport]',
        )
    kind: Callable[..., Transport]  # both take the same keywords
    if config.kind is TransportKind.SSH:
        from hpcscale.slurm.ssh import SshTransport

        kind = SshTransport
    else:
        from hpcscale.slurm.openssh import OpensshTransport

        kind = OpensshTransport
    return kind(
        host=config.host,
        port=config.port,
        user=config.user,
        identity_file=config.identity_file,
        known_hosts=config.known_hosts,
        proxy_jump=config.proxy_jump,
        ssh_config=config.ssh_config,
        connect_timeout_s=config.connect_timeout_s,
    )
