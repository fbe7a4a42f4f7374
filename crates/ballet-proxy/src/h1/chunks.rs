//! The chunked coding (RFC 9112 §7.1), read strictly: a state machine fed byte slices of any cut.

use std::ops::Range;

/// Longest extension of one chunk in bytes.
pub const MAX_EXTENSION: usize = 256;
/// Longest trailer section in bytes.
pub const MAX_TRAILERS: usize = 8 << 10;

/// Reads a chunked body. Extensions and trailers are checked and dropped.
#[derive(Clone, Debug)]
pub struct Chunks {
    state: State,
    /// What is left of the chunk at hand.
    left: u64,
    /// Digits, extension bytes or trailer bytes seen, whichever is being read.
    seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line after the empty chunk.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This range of the fed slice is body.
    Data(Range<usize>),
    /// The fed slice is used up.
    More,
    /// The body has ended.
    End,
}

/// The coding is broken; the connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed: {0}")]
pub struct BadChunk(pub &'static str);

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size, left: 0, seen: 0 }
    }
}

impl Chunks {
    /// Reads on: says how many bytes of `fed` were used and what they were.
    pub fn next(&mut self, fed: &[u8]) -> Result<(usize, Piece), BadChunk> {
        let mut at = 0;
        while at < fed.len() || self.state == State::End {
            if self.state == State::End {
                return Ok((at, Piece::End));
            }
            if self.state == State::Data {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(fed.len() - at);
                self.left -= take as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok((at + take, Piece::Data(at..at + take)));
            }
            let byte = fed[at];
            at += 1;
            self.state = self.step(byte)?;
        }
        Ok((at, Piece::More))
    }

    /// Whether the body has ended.
    pub fn ended(&self) -> bool {
        self.state == State::End
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.seen += 1;
                if self.seen > 15 {
                    return Err(BadChunk("a chunk's size has more than 15 digits"));
                }
                self.left = self.left * 16 + u64::from(char::from(byte).to_digit(16).unwrap_or(0));
                State::Size
            }
            (State::Size, _) if self.seen == 0 => return Err(BadChunk("a chunk has no size")),
            (State::Size, b';') => {
                self.seen = 0;
                State::Extension
            }
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, _) => return Err(BadChunk("a chunk's size is not hexadecimal")),
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.seen += 1;
                if self.seen > MAX_EXTENSION {
                    return Err(BadChunk("a chunk's extension is too long"));
                }
                State::Extension
            }
            (State::Extension, _) => return Err(BadChunk("a chunk's extension has a control character")),
            (State::SizeLf, b'\n') => {
                self.seen = 0;
                if self.left == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::SizeLf | State::DataLf | State::TrailerLf | State::EndLf, _) if byte != b'\n' => {
                return Err(BadChunk("a line does not end in CR LF"));
            }
            (State::DataCr, _) => return Err(BadChunk("a chunk is longer than its size")),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::EndLf, _) => State::End,
            (State::TrailerLf, _) => State::TrailerStart,
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => return self.trailer(byte),
            (State::SizeLf | State::DataLf | State::Data | State::End, _) => return Err(BadChunk("out of step")),
        })
    }

    fn trailer(&mut self, byte: u8) -> Result<State, BadChunk> {
        self.seen += 1;
        if self.seen > MAX_TRAILERS {
            return Err(BadChunk("the trailers are too long"));
        }
        match (self.state, byte) {
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::TrailerValue),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if super::token(&[byte]) => Ok(State::TrailerName),
            // Whatever else stands here; the other states never come here.
            (_, _) => Err(BadChunk("a trailer is not a header line")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body cut at every `cut` bytes; gives the data and what is left over.
    fn read(body: &[u8], cut: usize) -> Result<(Vec<u8>, bool, usize), BadChunk> {
        let (mut chunks, mut data, mut used) = (Chunks::default(), vec![], 0);
        for part in body.chunks(cut) {
            let mut at = 0;
            loop {
                let (n, piece) = chunks.next(&part[at..])?;
                used += n;
                match piece {
                    Piece::Data(range) => data.extend_from_slice(&part[at..][range]),
                    Piece::More => break,
                    Piece::End => return Ok((data, true, used)),
                }
                at += n;
            }
        }
        Ok((data, false, used))
    }

    #[test]
    fn good_bodies_come_out_whole_at_any_cut() {
        for (body, data) in [
            (&b"3\r\nabc\r\n0\r\n\r\n"[..], &b"abc"[..]),
            (b"3;a=b\r\nabc\r\n00002\r\nde\r\n0\r\n\r\n", b"abcde"),
            (b"A\r\n0123456789\r\n0;x\r\nContent-Length: 9\r\nAuthorization: x\r\n\r\n", b"0123456789"),
            (b"0\r\n\r\n", b""),
        ] {
            for cut in 1..=body.len() {
                let mut with_next = body.to_vec();
                with_next.extend_from_slice(b"GET ");
                assert_eq!(read(&with_next, cut), Ok((data.to_vec(), true, body.len())), "cut {cut} of {body:?}");
            }
        }
    }

    #[test]
    fn broken_bodies_are_refused_at_any_cut() {
        for body in [
            &b"3;\nxx\r\nabc\r\n0\r\n\r\n"[..],       // D33
            b"3\r\r;a\r\nabc\r\n0\r\n\r\n",           // D34
            b"3\nabc\r\n0\r\n\r\n",                   // D35
            b"3\r\nabcX\r\n0\r\n\r\n",                // D36
            b"0x3\r\nabc\r\n0\r\n\r\n",               // D37
            b"10000000000000003\r\nabc\r\n0\r\n\r\n", // D38
            b" 3\r\nabc\r\n0\r\n\r\n",                // D39
            b"\r\nabc\r\n0\r\n\r\n",                  // D40
            b"3\r\nabc\n0\r\n\r\n",                   // D41
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"-3\r\nabc\r\n0\r\n\r\n",
            b"0\r\n\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n folded: 1\r\n\r\n",
            b"0\r\nA: b\n\r\n",
        ] {
            for cut in 1..=body.len() {
                assert!(read(body, cut).is_err(), "cut {cut} of {:?}", String::from_utf8_lossy(body));
            }
        }
    }

    #[test]
    fn extensions_and_trailers_have_a_limit() {
        let long = [b"1;".to_vec(), vec![b'x'; MAX_EXTENSION + 1], b"\r\na\r\n0\r\n\r\n".to_vec()].concat();
        assert!(read(&long, 64).is_err());
        let long = [b"0\r\nA:".to_vec(), vec![b'x'; MAX_TRAILERS], b"\r\n\r\n".to_vec()].concat();
        assert!(read(&long, 64).is_err());
    }
}
