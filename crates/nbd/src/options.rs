//! The data of options ("Option types"): bytes in, values out.

use std::io;

use crate::wire::{EXPORT_NAME_LEN_MAX, Fields, violation};

/// The metadata context that this server knows ("Metadata contexts").
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug)]
pub(crate) struct InfoRequest<'b> {
    pub(crate) name: &'b [u8],
    /// The kinds of information that are wanted.
    pub(crate) kinds: Vec<u16>,
}

impl<'b> InfoRequest<'b> {
    pub(crate) fn parse(data: &'b [u8]) -> io::Result<Self> {
        let mut fields = Fields(data);
        let name = name(&mut fields)?;
        let count = fields.u16()?;
        let kinds = (0..count).map(|_| fields.u16()).collect::<io::Result<_>>()?;
        end(&fields)?;
        Ok(Self { name, kinds })
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug)]
pub(crate) struct MetaQuery<'b> {
    pub(crate) name: &'b [u8],
    queries: Vec<&'b [u8]>,
}

impl<'b> MetaQuery<'b> {
    pub(crate) fn parse(data: &'b [u8]) -> io::Result<Self> {
        let mut fields = Fields(data);
        let name = name(&mut fields)?;
        let count = fields.u32()?;
        // Each query takes four bytes at least, so that the count cannot ask for more room than the data has.
        let queries: Vec<_> = (0..count).map(|_| fields.string()).collect::<io::Result<_>>()?;
        end(&fields)?;
        for query in &queries {
            let is_well_formed = core::str::from_utf8(query).is_ok_and(|text| text.contains(':'));
            if !is_well_formed {
                return Err(violation("a query for metadata contexts has no namespace"));
            }
        }
        Ok(Self { name, queries })
    }

    /// Whether a client that sets contexts gets `base:allocation`.
    pub(crate) fn selects(&self) -> bool {
        self.queries.contains(&BASE_ALLOCATION.as_bytes())
    }

    /// Whether a client that lists contexts is told of `base:allocation`: asked for all, its namespace, or itself.
    pub(crate) fn lists(&self) -> bool {
        self.queries.is_empty() || self.queries.contains(&&b"base:"[..]) || self.selects()
    }
}

fn name<'b>(fields: &mut Fields<'b>) -> io::Result<&'b [u8]> {
    let name = fields.string()?;
    if name.len() > EXPORT_NAME_LEN_MAX {
        return Err(violation("the name of an export is longer than 4096 bytes"));
    }
    Ok(name)
}

fn end(fields: &Fields<'_>) -> io::Result<()> {
    match fields.0.is_empty() {
        true => Ok(()),
        false => Err(violation("the data of an option is longer than what it holds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(queries: &[&str]) -> Vec<u8> {
        let mut data = [0, 0, 0, 1, b'x'].to_vec();
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    #[test]
    fn queries_select_and_list() {
        for (queries, selects, lists) in [
            (&[][..], false, true),
            (&["base:"], false, true),
            (&["base:allocation"], true, true),
            (&["qemu:dirty-bitmap:b0"], false, false),
            (&["qemu:", "base:allocation"], true, true),
            (&["base:allocatio"], false, false),
        ] {
            let data = meta(queries);
            let query = MetaQuery::parse(&data).unwrap();
            assert_eq!((query.name, query.selects(), query.lists()), (&b"x"[..], selects, lists), "{queries:?}");
        }
        assert!(MetaQuery::parse(&meta(&["allocation"])).is_err());
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let whole = meta(&["base:allocation"]);
        for len in 0..whole.len() {
            assert!(MetaQuery::parse(&whole[..len]).is_err(), "{len} bytes");
        }
        assert!(MetaQuery::parse(&[whole, vec![0]].concat()).is_err());
        assert!(MetaQuery::parse(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(InfoRequest::parse(&[0, 0, 0, 0, 0, 2, 0, 3]).is_err());
        assert!(InfoRequest::parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
        assert_eq!(InfoRequest::parse(&[0, 0, 0, 0, 0, 1, 0, 3]).unwrap().kinds, [3]);
        let long = [&4097u32.to_be_bytes()[..], &[b'n'; 4097], &[0, 0]].concat();
        assert!(InfoRequest::parse(&long).is_err());
    }
}
