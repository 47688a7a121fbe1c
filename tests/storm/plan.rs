//! Plans of a storm: how many gateways and clients there are, what each can do, and what fails.

use moorline_proto::time::Duration;

/// Beginning of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// Every connection breaks; all gateways live.
    EveryConnection,
    /// The first region is gone: its gateways and its dispatch servers answer nothing.
    Region,
}

/// One storm. Numbers are those of reality; [`Plan::scale`] divides them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) disaster: Disaster,
    pub(crate) regions: usize,
    /// Gateways of each region.
    pub(crate) gateways: usize,
    /// Clients of each gateway at the beginning.
    pub(crate) clients: usize,
    /// Real clients that one of the simulation stands for.
    pub(crate) scale: usize,
    /// `limits.connections_max` of a gateway.
    pub(crate) connections_max: usize,
    /// `listener.accept_rate` of a gateway, per second; 0: none.
    pub(crate) accept_rate: u32,
    /// `listener.handshakes_max` of a gateway.
    pub(crate) handshakes_max: usize,
    /// `listener.backlog` of a gateway.
    pub(crate) backlog: usize,
    /// Cores of a gateway that log clients in.
    pub(crate) cores: f64,
    /// Time of one core for a login with its TLS handshake, and for a question to dispatch.
    pub(crate) login: Duration,
    /// Cores of the dispatch servers of a region, together.
    pub(crate) dispatch_cores: f64,
    /// Questions that wait at the dispatch servers of a region.
    pub(crate) questions_max: usize,
    /// Time within which broken connections are noticed, each at a random moment.
    pub(crate) noticed_within: Duration,
    /// One of four nodes of the backend is silent from the first to the second time.
    pub(crate) silent_node: Option<(Duration, Duration)>,
}

impl Plan {
    /// Two hundred gateways in four regions, each with half a million clients: 10^8 in all.
    pub(crate) fn world(disaster: Disaster, scale: usize) -> Self {
        Self {
            disaster,
            regions: 4,
            gateways: 50,
            clients: 500_000,
            scale,
            connections_max: 1_000_000,
            accept_rate: 0,
            handshakes_max: 16_384,
            backlog: 4_096,
            cores: 2.0,
            login: Duration::from_micros(301),
            dispatch_cores: 20.0,
            questions_max: 10 * 1_024,
            noticed_within: Duration::from_secs(1),
            silent_node: None,
        }
    }

    /// A tenth of the gateways, and one simulated client for 500, for the ordinary run.
    pub(crate) fn small(disaster: Disaster) -> Self {
        let world = Self::world(disaster, 500);
        Self { gateways: 5, dispatch_cores: 2.0, questions_max: 1_024, ..world }
    }

    pub(crate) const fn scaled(&self, number: usize) -> usize {
        let scaled = number / self.scale;
        if scaled == 0 { 1 } else { scaled }
    }

    /// Logins per second of one gateway, of real clients.
    pub(crate) fn login_rate(&self) -> f64 {
        self.cores / self.login.as_secs_f64()
    }

    /// Number of simulated clients.
    pub(crate) const fn population(&self) -> usize {
        self.regions * self.gateways * (self.clients / self.scale)
    }
}
