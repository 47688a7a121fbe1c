//! PROXY protocol, version 2: a balancer tells in front of a connection's first byte who the client is.
//!
//! [`read`] is pure: it looks at the first bytes of a connection. Only a peer within [`Trusted`] may say where a client
//! comes from. The text form (version 1) is refused: its end has to be searched for.
//!
//! | part | bytes | answer to a fault |
//! |---|---|---|
//! | signature | 12 | [`Fault::NotProxy`], or [`Fault::Version1`], at the first byte that differs |
//! | version and command | 1 | [`Fault::BadVersion`], [`Fault::BadCommand`] |
//! | family and transport | 1 | [`Fault::BadFamily`] |
//! | length of the rest | 2 | [`Fault::TooLong`] above [`HEADER_BYTES_MAX`] in all, [`Fault::TooShort`] for the family |
//! | addresses | 12, 36 or 216 | - |
//! | extensions (TLV) | the rest | [`Fault::BadExtension`]; skipped, except a CRC32C: [`Fault::BadChecksum`] |
//!
//! Example: `signature 21 11 000C C0000207 0A000001 8235 01BB` is 28 bytes and says: 192.0.2.7:33333 talks to
//! 10.0.0.1:443 over TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header that is accepted, in bytes: what any path carries in one packet.
pub const HEADER_BYTES_MAX: usize = 536;
/// Networks in one list of [`Trusted`].
pub const NETWORKS_MAX: usize = 256;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_1: &[u8; 6] = b"PROXY ";
/// Bytes up to the addresses.
const HEAD_BYTES: usize = 16;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;
const UNIX_BYTES: usize = 216;
/// Type of the extension with a checksum over the whole header.
const CRC32C: u8 = 3;

/// A header that has come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the header; the client's own bytes begin behind it.
    pub bytes: usize,
    /// The client's address. `None`: the balancer speaks for itself, such as in a health check, or it knows no IP address;
    /// the address of the socket counts.
    pub client: Option<SocketAddr>,
}

/// Reason why the first bytes of a connection are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The first bytes are not the signature.
    #[error(
        "the connection does not begin with a PROXY header; have the balancer send PROXY protocol version 2"
    )]
    NotProxy,
    /// The text form.
    #[error(
        "the balancer speaks PROXY protocol version 1; have it send version 2 (HAProxy: `send-proxy-v2`)"
    )]
    Version1,
    /// Another version behind the signature.
    #[error("the PROXY header has version {0}, expected 2")]
    BadVersion(u8),
    /// Neither LOCAL nor PROXY.
    #[error("the PROXY header has command {0}, expected 0 (LOCAL) or 1 (PROXY)")]
    BadCommand(u8),
    /// A family or transport that no stream has, such as UDP.
    #[error("the PROXY header has address family {0:#04x}, expected TCP over IPv4 (0x11) or IPv6 (0x21)")]
    BadFamily(u8),
    /// More than [`HEADER_BYTES_MAX`] bytes.
    #[error("the PROXY header has {0} bytes, limit {HEADER_BYTES_MAX}; send fewer extensions")]
    TooLong(usize),
    /// The addresses do not fit.
    #[error("the PROXY header has {0} bytes of addresses, fewer than its family needs")]
    TooShort(usize),
    /// An extension reaches behind the end of the header, or there are two checksums.
    #[error("the PROXY header ends within an extension, or has a bad checksum extension")]
    BadExtension,
    /// The CRC32C differs.
    #[error("the PROXY header has a wrong checksum")]
    BadChecksum,
}

impl Fault {
    /// The label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotProxy => "not_proxy",
            Self::Version1 => "version_1",
            Self::BadVersion(_) => "bad_version",
            Self::BadCommand(_) => "bad_command",
            Self::BadFamily(_) => "bad_family",
            Self::TooLong(_) => "too_long",
            Self::TooShort(_) => "too_short",
            Self::BadExtension => "bad_extension",
            Self::BadChecksum => "bad_checksum",
        }
    }
}

/// Reads the header at the beginning of a connection. `Ok(None)`: more bytes are needed, at most [`HEADER_BYTES_MAX`]
/// in all.
///
/// # Errors
/// [`Fault`], as early as the bytes show it.
pub fn read(input: &[u8]) -> Result<Option<Header>, Fault> {
    check_beginning(input)?;
    let Some(head) = input.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let (command, family) = (head[12] & 0x0F, head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let bytes = HEAD_BYTES + length;
    if bytes > HEADER_BYTES_MAX {
        return Err(Fault::TooLong(bytes));
    }
    let of_addresses = match family {
        _ if command == LOCAL => 0,
        TCP_V4 => 12,
        TCP_V6 => 36,
        UNIX_STREAM => UNIX_BYTES,
        _ => 0,
    };
    if length < of_addresses {
        return Err(Fault::TooShort(length));
    }
    let Some(header) = input.get(..bytes) else { return Ok(None) };
    // A balancer that speaks for itself, or knows no address, may put anything here.
    if of_addresses == 0 {
        return Ok(Some(Header { bytes, client: None }));
    }
    check_extensions(header, HEAD_BYTES + of_addresses)?;
    Ok(Some(Header { bytes, client: client_of(family, &header[HEAD_BYTES..]) }))
}

/// Checks the signature, version, command and family, as far as they are there.
fn check_beginning(input: &[u8]) -> Result<(), Fault> {
    let is_beginning = |of: &[u8]| input.iter().zip(of).all(|(a, b)| a == b);
    if !is_beginning(SIGNATURE) {
        let is_text = is_beginning(VERSION_1) && input.len() >= VERSION_1.len();
        let may_be_text = is_beginning(VERSION_1) && !is_text;
        return if is_text {
            Err(Fault::Version1)
        } else if may_be_text {
            Ok(()) // fewer than 6 bytes: the next one tells
        } else {
            Err(Fault::NotProxy)
        };
    }
    let Some(version) = input.get(12) else { return Ok(()) };
    if version >> 4 != 2 {
        return Err(Fault::BadVersion(version >> 4));
    }
    let command = version & 0x0F;
    if command > PROXY {
        return Err(Fault::BadCommand(command));
    }
    let Some(family) = input.get(13).filter(|_| command == PROXY) else { return Ok(()) };
    // UNSPEC, with any transport that is defined: the balancer knows no address.
    if matches!(*family, 0..=2 | TCP_V4 | TCP_V6 | UNIX_STREAM) {
        Ok(())
    } else {
        Err(Fault::BadFamily(*family))
    }
}

/// Walks over the extensions from `at` to the end of the header.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), Fault> {
    let mut checksum = None;
    while at < header.len() {
        let Some(&[kind, high, low]) = header[at..].first_chunk() else { return Err(Fault::BadExtension) };
        let from = at + 3;
        at = from + usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = header.get(from..at) else { return Err(Fault::BadExtension) };
        if kind == CRC32C {
            let value = <[u8; 4]>::try_from(value).map_err(|_| Fault::BadExtension)?;
            if checksum.replace((from, u32::from_be_bytes(value))).is_some() {
                return Err(Fault::BadExtension);
            }
        }
    }
    let Some((from, told)) = checksum else { return Ok(()) };
    // The checksum is over the header with zeros in its own place.
    let own = crc32c::crc32c(&header[..from]);
    let own = crc32c::crc32c_append(own, &[0; 4]);
    let own = crc32c::crc32c_append(own, &header[from + 4..]);
    if own == told { Ok(()) } else { Err(Fault::BadChecksum) }
}

/// Reads the client's address; an IPv4 address in IPv6 form becomes IPv4.
fn client_of(family: u8, addresses: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = match family {
        TCP_V4 => (IpAddr::from(*addresses.first_chunk::<4>()?), addresses.get(8..10)?),
        TCP_V6 => (IpAddr::from(*addresses.first_chunk::<16>()?), addresses.get(32..34)?),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes([port[0], port[1]])))
}

/// Networks whose hosts may tell where a client comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted(Vec<Network>);

/// A network: the first bits of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

/// Reason why a text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No IP address before the slash.
    #[error("{text:?} is not a network; write an address such as 192.0.2.7, or a network such as 10.0.0.0/8")]
    Address {
        /// The rejected text.
        text: String,
    },
    /// The number behind the slash.
    #[error("{text:?} is not a network: behind the slash stand 0 to {max} bits")]
    Bits {
        /// The rejected text.
        text: String,
        /// Bits of an address of this family.
        max: u8,
    },
    /// Bits behind the network's are set, so that one of address and bits is mistyped.
    #[error(
        "{text:?} is an address within a network; write {network} for the network, or {host} for the host"
    )]
    HostBits {
        /// The rejected text.
        text: String,
        /// The network of these bits.
        network: String,
        /// The host alone.
        host: String,
    },
    /// A list that is too long.
    #[error("{count} networks, limit {NETWORKS_MAX}; name larger networks")]
    TooMany {
        /// Networks in the list.
        count: usize,
    },
}

impl Trusted {
    /// Reads networks such as `10.0.0.0/8`, `fd00::/8` or `192.0.2.7`.
    ///
    /// # Errors
    /// The first text that is not a network, or more than [`NETWORKS_MAX`] texts.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, NetworkError> {
        if texts.len() > NETWORKS_MAX {
            return Err(NetworkError::TooMany { count: texts.len() });
        }
        texts.iter().map(|text| Network::parse(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether the peer is within a network. An IPv4 address in IPv6 form counts as IPv4.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(peer))
    }

    /// Returns whether nobody is trusted.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address { text: text.to_owned() })?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let is_number =
            |bits: &&str| (1..=3).contains(&bits.len()) && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            None => max,
            Some(bits) => {
                let number = Some(bits).filter(is_number).and_then(|bits| bits.parse().ok());
                let number = number.filter(|bits| *bits <= max);
                number.ok_or_else(|| NetworkError::Bits { text: text.to_owned(), max })?
            }
        };
        let network = Self { address: first_bits(address, bits), bits };
        if network.address != address {
            return Err(NetworkError::HostBits {
                text: text.to_owned(),
                network: format!("{}/{bits}", network.address),
                host: address.to_string(),
            });
        }
        Ok(network.canonical())
    }

    /// A network of IPv4 addresses in IPv6 form becomes one of IPv4.
    fn canonical(self) -> Self {
        match self.address.to_canonical() {
            address @ IpAddr::V4(_) if self.address.is_ipv6() && self.bits >= 96 => {
                Self { address, bits: self.bits - 96 }
            }
            _ => self,
        }
    }

    fn contains(self, peer: IpAddr) -> bool {
        peer.is_ipv4() == self.address.is_ipv4() && first_bits(peer, self.bits) == self.address
    }
}

/// The address with all bits behind the first ones cleared.
fn first_bits(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header; `command` and `family` are its bytes 13 and 14.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x82, 0x35, 1, 0xBB];

    fn v6(ip: &str) -> Vec<u8> {
        let ip: Ipv6Addr = ip.parse().expect("an address");
        [&ip.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0x82, 0x35, 1, 0xBB]].concat()
    }

    fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &u16::try_from(value.len()).expect("short").to_be_bytes(), value].concat()
    }

    /// A header for IPv4 with extensions around a checksum, which is right.
    fn with_checksum(before: &[u8], behind: &[u8]) -> Vec<u8> {
        let rest = [&V4, before, &extension(CRC32C, &[0; 4]), behind].concat();
        let mut header = header(0x21, TCP_V4, &rest);
        let at = HEAD_BYTES + V4.len() + before.len() + 3;
        let sum = crc32c::crc32c(&header).to_be_bytes();
        header[at..at + 4].copy_from_slice(&sum);
        header
    }

    /// Reads byte by byte: needs more until the last byte of the header, or fails as the whole does.
    fn read_both(input: &[u8]) -> Result<Option<Header>, Fault> {
        let whole = read(input);
        let first = (0..=input.len()).map(|cut| read(&input[..cut])).find(|verdict| *verdict != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "byte by byte");
        whole
    }

    fn client(input: &[u8]) -> Option<SocketAddr> {
        let behind = [input, b"the client's own bytes"].concat();
        let header = read_both(&behind).expect("valid").expect("whole");
        assert_eq!(header.bytes, input.len());
        header.client
    }

    #[test]
    fn the_client_is_who_the_balancer_says() {
        let told = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
        assert_eq!(client(&header(0x21, TCP_V4, &V4)), told("192.0.2.7:33333"));
        assert_eq!(client(&header(0x21, TCP_V6, &v6("2001:db8::7"))), told("[2001:db8::7]:33333"));
        assert_eq!(client(&header(0x21, TCP_V6, &v6("::ffff:192.0.2.7"))), told("192.0.2.7:33333"));
        let extensions = [extension(1, b"h2"), extension(4, &[0; 40]), extension(0xEA, b"")].concat();
        let whole = [&V4[..], &extensions].concat();
        assert_eq!(client(&header(0x21, TCP_V4, &whole)), told("192.0.2.7:33333"));
    }

    #[test]
    fn a_balancer_without_a_client_leaves_the_sockets_address() {
        assert_eq!(client(&header(0x20, 0, &[])), None);
        assert_eq!(client(&header(0x20, 0xFF, b"anything at all")), None, "a health check");
        assert_eq!(client(&header(0x20, TCP_V4, &V4)), None);
        assert_eq!(client(&header(0x21, 0, b"anything at all")), None, "an unknown family");
        assert_eq!(client(&header(0x21, UNIX_STREAM, &[0; UNIX_BYTES])), None);
    }

    #[test]
    fn checksums_are_checked_where_they_are() {
        let good = with_checksum(&extension(4, b"padding"), &extension(5, b"id"));
        assert!(client(&good).is_some());
        let kind = HEAD_BYTES + V4.len() + extension(4, b"padding").len();
        for at in (15..good.len()).filter(|at| *at != kind) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read_both(&bad).is_err() || read_both(&bad) == Ok(None), "byte {at}");
        }
        let mut bad = good;
        bad[17] ^= 1;
        assert_eq!(read_both(&bad), Err(Fault::BadChecksum));
        let twice = with_checksum(&[], &extension(CRC32C, &[0; 4]));
        assert_eq!(read_both(&twice), Err(Fault::BadExtension));
        let short = [&V4[..], &extension(CRC32C, &[0; 3])].concat();
        assert_eq!(read_both(&header(0x21, TCP_V4, &short)), Err(Fault::BadExtension));
    }

    #[test]
    fn each_fault_has_its_name() {
        let rows: &[(&[u8], Fault)] = &[
            (b"GET / HTTP/1.1\r\n", Fault::NotProxy),
            (b"\r\n\r\nX", Fault::NotProxy),
            (b"PROXY TCP4 192.0.2.7", Fault::Version1),
            (b"PROXZ", Fault::NotProxy),
            (&header(0x11, TCP_V4, &V4), Fault::BadVersion(1)),
            (&header(0x31, TCP_V4, &V4), Fault::BadVersion(3)),
            (&header(0x22, TCP_V4, &V4), Fault::BadCommand(2)),
            (&header(0x21, 0x12, &V4), Fault::BadFamily(0x12)),
            (&header(0x21, 0x41, &V4), Fault::BadFamily(0x41)),
            (&header(0x21, TCP_V4, &V4[..11]), Fault::TooShort(11)),
            (&header(0x21, TCP_V6, &V4), Fault::TooShort(12)),
            (&header(0x21, UNIX_STREAM, &[0; 215]), Fault::TooShort(215)),
            (&header(0x21, TCP_V4, &[&V4[..], &[4, 0]].concat()), Fault::BadExtension),
            (&header(0x21, TCP_V4, &[&V4[..], &[4, 0, 2, 0]].concat()), Fault::BadExtension),
            (&header(0x20, 0, &[0; 521]), Fault::TooLong(537)),
        ];
        let mut labels: Vec<_> = rows.iter().map(|(_, fault)| fault.label()).collect();
        for (input, fault) in rows {
            assert_eq!(read_both(input), Err(*fault), "{input:02x?}");
            assert!(fault.to_string().contains("PROXY"), "{fault}");
        }
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), 8, "all but the checksum, which has its own test: {labels:?}");
        let longest = [&V4[..], &extension(4, &[0; HEADER_BYTES_MAX - HEAD_BYTES - 15])].concat();
        assert!(client(&header(0x21, TCP_V4, &longest)).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_read_the_same_byte_by_byte(bytes in proptest::collection::vec(any::<u8>(), 0..60), command in 0x20u8..0x23, family in 0u8..0x34, is_headed in any::<bool>()) {
            let input = if is_headed { header(command, family, &bytes) } else { bytes };
            if let Ok(Some(header)) = read_both(&input) {
                prop_assert!(header.bytes <= input.len() && header.bytes <= HEADER_BYTES_MAX);
            }
        }

        #[test]
        fn a_network_contains_what_shares_its_bits(ip in any::<u32>(), other in any::<u32>(), bits in 0u8..=32) {
            let (ip, other) = (Ipv4Addr::from_bits(ip), Ipv4Addr::from_bits(other));
            let network = first_bits(ip.into(), bits);
            let trusted = Trusted::parse(&[format!("{network}/{bits}")]).expect("a network");
            let shared = (ip.to_bits() ^ other.to_bits()).leading_zeros();
            prop_assert!(trusted.contains(ip.into()));
            prop_assert_eq!(trusted.contains(other.into()), shared >= u32::from(bits));
            prop_assert_eq!(trusted.contains(other.to_ipv6_mapped().into()), shared >= u32::from(bits));
        }
    }

    #[test]
    fn networks_are_read_and_compared_in_one_form() {
        let trusted =
            Trusted::parse(&["10.0.0.0/8", "192.0.2.7", "fd00::/8", "::ffff:172.16.0.0/108", "2001:db8::1"])
                .expect("networks");
        let contains = |ip: &str| trusted.contains(ip.parse().expect("an address"));
        for ip in ["10.255.0.1", "::ffff:10.1.2.3", "192.0.2.7", "fdff::1", "172.31.9.9", "2001:db8::1"] {
            assert!(contains(ip), "{ip}");
        }
        for ip in ["11.0.0.1", "192.0.2.8", "fe00::1", "172.32.0.1", "2001:db8::2", "::10.0.0.1", "::1"] {
            assert!(!contains(ip), "{ip}");
        }
        let everybody = Trusted::parse(&["0.0.0.0/0", "::/0"]).expect("networks");
        assert!(["1.2.3.4", "::1"].iter().all(|ip| everybody.contains(ip.parse().expect("an address"))));
        assert!(Trusted::parse::<&str>(&[]).expect("none").is_empty());
        assert!(!Trusted::default().contains(Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn mistyped_networks_are_refused_with_what_to_write() {
        let told = |text: &str| Trusted::parse(&[text]).expect_err(text).to_string();
        for text in ["", "10.0.0/8", "localhost", "10.0.0.0/8/8", "/8", "10.0.0.0 /8", "10.0.0.1:80"] {
            assert!(told(text).contains("is not a network"), "{}", told(text));
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/0008", "10.0.0.0/256"] {
            assert!(told(text).contains("0 to 32 bits"), "{}", told(text));
        }
        assert!(told("::/129").contains("0 to 128 bits"));
        let told = told("10.0.0.7/8");
        assert!(told.contains("write 10.0.0.0/8") && told.contains("or 10.0.0.7"), "{told}");
        let many = vec!["10.0.0.1"; NETWORKS_MAX + 1];
        assert_eq!(Trusted::parse(&many), Err(NetworkError::TooMany { count: NETWORKS_MAX + 1 }));
    }
}
