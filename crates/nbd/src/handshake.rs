//! Fixed newstyle negotiation: what is served, and how the two sides speak from then on ("Handshake").

use std::io;

use crate::export::Export;
use crate::options::{BASE_ALLOCATION, InfoRequest, MetaQuery};
use crate::stream::{Stream, read_exact, skip};
use crate::wire::{
    EXPORT_NAME_LEN_MAX, FIXED_NEWSTYLE, Fields, NBD_MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    REQUEST_LEN_MAX, info, option, option_reply, transmission_flag, violation,
};

/// The longest data of an option that is read into memory.
const OPTION_LEN_MAX: u32 = 64 << 10;
/// What a request had better be a multiple of: the pages of the client's memory and the blocks of its file systems.
const PREFERRED_BLOCK_LEN: u32 = 4096;

/// What both sides have agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Agreed {
    /// Structured replies.
    pub(crate) structured: bool,
    /// Whether block status tells `base:allocation`.
    pub(crate) allocation: bool,
}

/// How haggling ends.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The client left, as it may.
    Left,
    /// From the next byte on everything goes through TLS; haggling begins anew there.
    StartTls,
    /// Requests follow.
    Transmission(Agreed),
}

/// How a connection stands to TLS ("TLS support").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// There is none.
    None,
    /// It is required, and has not begun.
    Required,
    /// It protects the connection.
    Active,
}

/// What is offered on a connection.
pub(crate) struct Offer<'e> {
    pub(crate) name: &'e str,
    pub(crate) export: &'e dyn Export,
}

/// Greets the client; whether it wants the 124 zeros that old clients wait for.
pub(crate) fn greet(stream: &dyn Stream, security: Security) -> io::Result<bool> {
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting, &[])?;
    let mut flags = [0; 4];
    read_exact(stream, &mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(violation("the client sets flags that the server did not offer"));
    }
    if security == Security::Required && flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(violation("the client does not know fixed newstyle negotiation, which TLS needs"));
    }
    Ok(flags & u32::from(NO_ZEROES) == 0)
}

/// Answers options until the client has what it wants.
pub(crate) fn haggle(
    stream: &dyn Stream,
    offer: &Offer<'_>,
    security: Security,
    wants_zeroes: bool,
) -> io::Result<Ending> {
    let mut haggling = Haggling { stream, offer, agreed: Agreed::default(), option: 0 };
    loop {
        let mut header = [0; 16];
        read_exact(stream, &mut header)?;
        let mut fields = Fields(&header);
        if fields.u64()? != OPTION_MAGIC {
            return Err(violation("an option does not begin with its magic number"));
        }
        haggling.option = fields.u32()?;
        let len = fields.u32()?;
        if haggling.option == option::EXPORT_NAME {
            // It has no reply but the export itself: what cannot be granted ends the connection.
            if security == Security::Required {
                return Err(violation("the client wants the export without TLS"));
            }
            return haggling.export_name(len, wants_zeroes);
        }
        if len > OPTION_LEN_MAX {
            skip(stream, len.into())?;
            haggling.reply(option_reply::ERR_TOO_BIG, b"the data of the option is too long")?;
            continue;
        }
        let mut data = vec![0; len as usize];
        read_exact(stream, &mut data)?;
        if let Some(ending) = haggling.answer(&data, security)? {
            return Ok(ending);
        }
    }
}

struct Haggling<'s> {
    stream: &'s dyn Stream,
    offer: &'s Offer<'s>,
    agreed: Agreed,
    /// The option that is answered.
    option: u32,
}

impl Haggling<'_> {
    fn answer(&mut self, data: &[u8], security: Security) -> io::Result<Option<Ending>> {
        match self.option {
            option::ABORT => {
                // The client may have gone without waiting for the answer.
                let _ = self.reply(option_reply::ACK, &[]);
                return Ok(Some(Ending::Left));
            }
            option::STARTTLS => match security {
                Security::None => self.reply(option_reply::ERR_POLICY, b"this server has no TLS")?,
                Security::Active => self.reply(option_reply::ERR_INVALID, b"TLS has begun already")?,
                Security::Required if !data.is_empty() => self.invalid()?,
                Security::Required => {
                    self.reply(option_reply::ACK, &[])?;
                    return Ok(Some(Ending::StartTls));
                }
            },
            _ if security == Security::Required => {
                self.reply(option_reply::ERR_TLS_REQD, b"this server is reached by TLS only")?;
            }
            option::GO | option::INFO => return self.info(data),
            option::LIST if data.is_empty() => {
                let name = self.offer.name.as_bytes();
                self.reply(option_reply::SERVER, &[&(name.len() as u32).to_be_bytes(), name].concat())?;
                self.reply(option_reply::ACK, &[])?;
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                self.reply(option_reply::ACK, &[])?;
            }
            option::LIST | option::STRUCTURED_REPLY => self.invalid()?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(data)?,
            _ => self.reply(option_reply::ERR_UNSUP, b"this server does not know the option")?,
        }
        Ok(None)
    }

    fn export_name(&mut self, len: u32, wants_zeroes: bool) -> io::Result<Ending> {
        if len as usize > EXPORT_NAME_LEN_MAX {
            return Err(violation("the name of an export is longer than 4096 bytes"));
        }
        let mut name = vec![0; len as usize];
        read_exact(self.stream, &mut name)?;
        if !self.offer.is_named(&name) {
            return Err(violation("the client wants an export that is not served"));
        }
        let mut reply = [0; 134];
        reply[..8].copy_from_slice(&self.offer.export.size_bytes().to_be_bytes());
        reply[8..10].copy_from_slice(&self.offer.flags(self.agreed).to_be_bytes());
        self.stream.write_all(if wants_zeroes { &reply } else { &reply[..10] }, &[])?;
        Ok(Ending::Transmission(self.agreed))
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`.
    fn info(&mut self, data: &[u8]) -> io::Result<Option<Ending>> {
        let Ok(request) = InfoRequest::parse(data) else {
            self.invalid()?;
            return Ok(None);
        };
        if !self.offer.is_named(request.name) {
            self.reply(option_reply::ERR_UNKNOWN, b"no export has this name")?;
            return Ok(None);
        }
        let size = self.offer.export.size_bytes().to_be_bytes();
        self.reply_info(info::EXPORT, &[&size[..], &self.offer.flags(self.agreed).to_be_bytes()].concat())?;
        if request.kinds.contains(&info::NAME) {
            self.reply_info(info::NAME, self.offer.name.as_bytes())?;
        }
        if request.kinds.contains(&info::BLOCK_SIZE) {
            // Any byte may be read and written alone.
            let sizes = [1, PREFERRED_BLOCK_LEN, REQUEST_LEN_MAX].map(u32::to_be_bytes);
            self.reply_info(info::BLOCK_SIZE, &sizes.concat())?;
        }
        self.reply(option_reply::ACK, &[])?;
        Ok((self.option == option::GO).then_some(Ending::Transmission(self.agreed)))
    }

    fn meta_context(&mut self, data: &[u8]) -> io::Result<()> {
        let sets = self.option == option::SET_META_CONTEXT;
        if sets {
            // A new choice replaces the one before, also where it fails.
            self.agreed.allocation = false;
        }
        let Ok(query) = MetaQuery::parse(data) else { return self.invalid() };
        if !self.agreed.structured {
            return self.reply(option_reply::ERR_INVALID, b"metadata contexts need structured replies");
        }
        if !self.offer.is_named(query.name) {
            return self.reply(option_reply::ERR_UNKNOWN, b"no export has this name");
        }
        if if sets { query.selects() } else { query.lists() } {
            // The number that names the context in transmission; reserved in a list.
            let id = if sets { ALLOCATION_ID } else { 0 };
            self.reply(option_reply::META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat())?;
        }
        self.agreed.allocation |= sets && query.selects();
        self.reply(option_reply::ACK, &[])
    }

    fn invalid(&self) -> io::Result<()> {
        self.reply(option_reply::ERR_INVALID, b"the data of the option is not what it should be")
    }

    fn reply_info(&self, kind: u16, data: &[u8]) -> io::Result<()> {
        self.reply(option_reply::INFO, &[&kind.to_be_bytes(), data].concat())
    }

    fn reply(&self, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut header = [0; 20];
        header[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        header[8..12].copy_from_slice(&self.option.to_be_bytes());
        header[12..16].copy_from_slice(&kind.to_be_bytes());
        header[16..].copy_from_slice(&(data.len() as u32).to_be_bytes());
        self.stream.write_all(&header, data)
    }
}

/// The number of `base:allocation` on every connection.
pub(crate) const ALLOCATION_ID: u32 = 1;

impl Offer<'_> {
    /// The empty name means the default export, which is the only one.
    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    fn flags(&self, agreed: Agreed) -> u16 {
        use transmission_flag as flag;
        let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        let access = match self.export.is_read_only() {
            true => flag::READ_ONLY,
            false if self.export.zeroes_fast() => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO,
            false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES,
        };
        always | access | if agreed.structured { flag::SEND_DF } else { 0 }
    }
}
