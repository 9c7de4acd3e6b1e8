//! The segments of a JPEG file: frame and scan headers, tables, and the two application markers that say which colours the
//! components stand for.

use super::huffman::HuffmanSpec;
use super::{CUT_OFF, Failure, Result};

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const RST0: u8 = 0xD0;

/// Position in natural order of each coefficient in coding (zigzag) order. A damaged run may lead up to 16 places beyond
/// the end: those fall on the last coefficient.
pub const NATURAL_ORDER: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// The bytes of a file, and how far they have been read.
pub struct Input<'a> {
    pub bytes: &'a [u8],
    /// Offset of the next byte.
    pub at: usize,
    /// A marker that a scan's data ran into, not yet acted upon.
    pub marker: Option<u8>,
    /// Number (0 to 7) of the restart marker that comes next.
    next_restart: u8,
}

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Failure::Damaged(CUT_OFF))?;
        self.at += 1;
        Ok(byte)
    }

    fn word(&mut self) -> Result<usize> {
        Ok(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    /// The content of the segment that begins here with its length, in which the length itself counts.
    fn segment(&mut self) -> Result<Segment<'a>> {
        let length = self.word()?;
        let length = length.checked_sub(2).ok_or(Failure::Damaged("a segment is too short"))?;
        self.content(length)
    }

    /// As [`Input::segment`], of a segment that may be anything.
    fn any_segment(&mut self) -> Result<Segment<'a>> {
        let length = self.word()?;
        self.content(length.saturating_sub(2))
    }

    fn content(&mut self, length: usize) -> Result<Segment<'a>> {
        let content = self.bytes.get(self.at..self.at + length);
        let content = content.ok_or(Failure::Damaged(CUT_OFF))?;
        self.at += length;
        Ok(Segment(content))
    }

    /// Skips to the next marker and takes it; bytes in between belong to nothing.
    fn next_marker(&mut self) -> Result<u8> {
        loop {
            while self.byte()? != 0xFF {}
            let mut marker = self.byte()?;
            while marker == 0xFF {
                marker = self.byte()?;
            }
            if marker != 0 {
                return Ok(marker);
            }
        }
    }

    /// Skips to the next marker, which stays the next one of the input.
    pub fn find_marker(&mut self) -> Result<u8> {
        let marker = match self.marker {
            Some(marker) => marker,
            None => self.next_marker()?,
        };
        self.marker = Some(marker);
        Ok(marker)
    }

    /// Takes the restart marker that is due. Where another marker stands, either skips to the one that is due or leaves
    /// the found one for later, so that the data up to there count as lost (libjpeg's `jpeg_resync_to_restart`).
    pub fn restart(&mut self) -> Result<()> {
        let due = self.next_restart;
        self.next_restart = (due + 1) % 8;
        loop {
            let marker = self.find_marker()?;
            let ahead = marker.wrapping_sub(RST0 + due) % 8;
            match marker {
                0..0xC0 => self.marker = None,
                0xD0..=0xD7 if ahead == 1 || ahead == 2 => return Ok(()),
                0xD0..=0xD7 if ahead == 6 || ahead == 7 => self.marker = None,
                0xD0..=0xD7 => {
                    self.marker = None;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The unread rest of a segment.
struct Segment<'a>(&'a [u8]);

impl Segment<'_> {
    fn byte(&mut self) -> Result<u8> {
        let (&byte, rest) = self.0.split_first().ok_or(Failure::Damaged("a segment is too short"))?;
        self.0 = rest;
        Ok(byte)
    }

    fn word(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Failure::Damaged("a segment is too long")) }
    }
}

/// One component of a frame.
pub struct Component {
    id: u8,
    /// Blocks of one interleaved unit (MCU) across and down: the sampling factors.
    pub h: usize,
    pub v: usize,
    quantisation_index: u8,
    /// Quantisation table in natural order, as it was when the component's first scan began.
    pub quantisation: Option<[u16; 64]>,
    /// Blocks that hold samples of the image, across and down.
    pub blocks_wide: usize,
    pub blocks_high: usize,
    /// The same, filled up to whole MCUs.
    pub padded_wide: usize,
    pub padded_high: usize,
    /// Samples of the image.
    pub width: usize,
    pub height: usize,
}

/// The frame: all that its scans have in common.
#[derive(Default)]
pub struct Frame {
    pub progressive: bool,
    pub arithmetic: bool,
    pub width: usize,
    pub height: usize,
    pub components: Vec<Component>,
    /// Largest sampling factors.
    pub max_h: usize,
    pub max_v: usize,
    /// MCUs across and down, where all components are interleaved.
    pub mcus_wide: usize,
    pub mcus_high: usize,
}

/// A scan's part of one component.
#[derive(Clone, Copy)]
pub struct ScanComponent {
    /// The component's place in the frame.
    pub index: usize,
    pub dc_table: usize,
    pub ac_table: usize,
}

/// The header of a scan.
#[derive(Default)]
pub struct Scan {
    pub components: Vec<ScanComponent>,
    /// First and last coefficient, in coding order.
    pub spectral: (usize, usize),
    /// Bit position of the previous scan of these coefficients (0: none), and of this one.
    pub approximation: (u32, u32),
}

/// Tables that scans refer to; every one holds until it is defined anew.
pub struct Tables {
    quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<HuffmanSpec>; 4],
    ac: [Option<HuffmanSpec>; 4],
    /// Conditioning of arithmetic coding: bounds L and U of small DC differences, and the bound K of low frequencies.
    pub arithmetic_dc: [(u8, u8); 16],
    pub arithmetic_ac: [u8; 16],
    /// MCUs between restart markers; 0: none.
    pub restart_interval: usize,
}

impl Tables {
    /// The Huffman table of DC differences of a scan's component.
    pub fn dc(&self, coded: &ScanComponent) -> Option<&HuffmanSpec> {
        self.dc.get(coded.dc_table)?.as_ref()
    }

    /// The Huffman table of AC coefficients of a scan's component.
    pub fn ac(&self, coded: &ScanComponent) -> Option<&HuffmanSpec> {
        self.ac.get(coded.ac_table)?.as_ref()
    }
}

/// Meaning of the components.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColourSpace {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// The end of a run of segments: a scan's header, or the end of the image.
pub enum Event {
    Scan(Scan),
    End,
}

/// The reader of all segments.
pub struct Headers<'a> {
    pub input: Input<'a>,
    pub tables: Tables,
    /// Without components until its header has come.
    pub frame: Frame,
    jfif: bool,
    /// Transform of the Adobe marker.
    adobe: Option<u8>,
}

impl<'a> Headers<'a> {
    /// A reader of `bytes`, which begin with the marker of a JPEG file.
    pub fn new(bytes: &'a [u8]) -> Headers<'a> {
        let tables = Tables {
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            arithmetic_dc: [(0, 1); 16],
            arithmetic_ac: [5; 16],
            restart_interval: 0,
        };
        let input = Input { bytes, at: 2, marker: None, next_restart: 0 };
        Headers { input, tables, frame: Frame::default(), jfif: false, adobe: None }
    }

    /// Reads segments up to the next scan header or the end of the image.
    pub fn next_event(&mut self) -> Result<Event> {
        loop {
            let marker = self.input.find_marker()?;
            self.input.marker = None;
            match marker {
                EOI => return Ok(Event::End),
                0xDA => return self.scan_header().map(Event::Scan),
                SOI => return Err(Failure::Damaged("a second image begins inside the first")),
                0x01 | 0xD0..=0xD7 => {}
                0xC0 | 0xC1 | 0xC2 | 0xC9 | 0xCA => self.frame_header(marker)?,
                0xC4 => self.huffman_tables()?,
                0xCC => self.arithmetic_conditioning()?,
                0xDB => self.quantisation_tables()?,
                0xDD => self.restart_interval()?,
                0xC3 | 0xCB => return Err(Failure::Unsupported("lossless coding".into())),
                0xC5..=0xCF => return Err(Failure::Unsupported("hierarchical or differential coding".into())),
                0xE0 | 0xEE => self.application(marker)?,
                0xDC | 0xE1..=0xEF | 0xFE => {
                    self.input.any_segment()?;
                }
                _ => return Err(Failure::Damaged("it holds an unknown marker")),
            }
        }
    }

    /// The components' meaning: JFIF goes first, then Adobe's transform, then the identifiers.
    pub fn colour_space(&self) -> ColourSpace {
        let ids: Vec<u8> = self.frame.components.iter().map(|component| component.id).collect();
        match (ids.len(), self.adobe) {
            (1, _) => ColourSpace::Grey,
            (4, None | Some(0)) => ColourSpace::Cmyk,
            (4, Some(_)) => ColourSpace::Ycck,
            (_, Some(0)) if !self.jfif => ColourSpace::Rgb,
            (_, None) if !self.jfif && ids == *b"RGB" => ColourSpace::Rgb,
            _ => ColourSpace::YCbCr,
        }
    }

    /// Keeps the quantisation table of every component that `scan` is the first to code: it may be replaced later.
    pub fn latch_quantisation(&mut self, scan: &Scan) -> Result<()> {
        for coded in &scan.components {
            let component = &mut self.frame.components[coded.index];
            if component.quantisation.is_none() {
                let table = self.tables.quantisation.get(usize::from(component.quantisation_index)).copied().flatten();
                component.quantisation = Some(table.ok_or(Failure::Damaged("a quantisation table is missing"))?);
            }
        }
        Ok(())
    }

    fn frame_header(&mut self, marker: u8) -> Result<()> {
        if !self.frame.components.is_empty() {
            return Err(Failure::Damaged("it has two frame headers"));
        }
        let mut segment = self.input.segment()?;
        let bits = segment.byte()?;
        let (height, width) = (usize::from(segment.word()?), usize::from(segment.word()?));
        let count = segment.byte()?;
        if bits != 8 {
            return Err(Failure::Unsupported(format!("{bits} bits a sample")));
        }
        if height == 0 {
            return Err(Failure::Unsupported("its height does not stand in its header".into()));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(Failure::Unsupported(format!("{count} components")));
        }
        let mut sampling = Vec::new();
        for _ in 0..count {
            let (id, factors, quantisation_index) = (segment.byte()?, segment.byte()?, segment.byte()?);
            let (h, v) = (usize::from(factors >> 4), usize::from(factors & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(Failure::Damaged("a sampling factor is not 1 to 4"));
            }
            sampling.push((id, h, v, quantisation_index));
        }
        segment.end()?;
        let max_h = sampling.iter().map(|&(_, h, _, _)| h).max().unwrap_or(1);
        let max_v = sampling.iter().map(|&(_, _, v, _)| v).max().unwrap_or(1);
        let (mcus_wide, mcus_high) = (width.div_ceil(8 * max_h), height.div_ceil(8 * max_v));
        let components = sampling.into_iter().map(|(id, h, v, quantisation_index)| Component {
            id,
            h,
            v,
            quantisation_index,
            quantisation: None,
            blocks_wide: (width * h).div_ceil(8 * max_h),
            blocks_high: (height * v).div_ceil(8 * max_v),
            padded_wide: mcus_wide * h,
            padded_high: mcus_high * v,
            width: (width * h).div_ceil(max_h),
            height: (height * v).div_ceil(max_v),
        });
        let components: Vec<Component> = components.collect();
        if components.iter().any(|component| max_h % component.h != 0 || max_v % component.v != 0) {
            return Err(Failure::Unsupported("components of a size that is no whole part of the image's".into()));
        }
        let progressive = matches!(marker, 0xC2 | 0xCA);
        let arithmetic = matches!(marker, 0xC9 | 0xCA);
        self.frame = Frame { progressive, arithmetic, width, height, components, max_h, max_v, mcus_wide, mcus_high };
        Ok(())
    }

    fn scan_header(&mut self) -> Result<Scan> {
        let mut segment = self.input.segment()?;
        let count = segment.byte()?;
        if !(1..=4).contains(&count) {
            return Err(Failure::Damaged("a scan has no component or more than 4"));
        }
        let mut components: Vec<ScanComponent> = Vec::new();
        for _ in 0..count {
            let (id, tables) = (segment.byte()?, segment.byte()?);
            // Components come in the order of the frame; where several have the same identifier, that alone tells them
            // apart.
            let mut later = self.frame.components.iter().enumerate().skip(components.len());
            let index = later.find(|(_, component)| component.id == id).map(|(index, _)| index);
            let index = index.ok_or(Failure::Damaged("a scan holds a component that the frame has not"))?;
            if components.iter().any(|other| other.index == index) {
                return Err(Failure::Damaged("a scan holds a component twice"));
            }
            components.push(ScanComponent {
                index,
                dc_table: usize::from(tables >> 4),
                ac_table: usize::from(tables & 15),
            });
        }
        let spectral = (usize::from(segment.byte()?), usize::from(segment.byte()?));
        let bits = segment.byte()?;
        let approximation = (u32::from(bits >> 4), u32::from(bits & 15));
        segment.end()?;
        let blocks =
            |coded: &ScanComponent| self.frame.components[coded.index].h * self.frame.components[coded.index].v;
        if components.len() > 1 && components.iter().map(blocks).sum::<usize>() > 10 {
            return Err(Failure::Damaged("a scan has more than 10 blocks a unit"));
        }
        let scan = Scan { components, spectral, approximation };
        if self.frame.progressive {
            scan.check_progression()?;
        }
        self.input.next_restart = 0;
        Ok(scan)
    }

    fn huffman_tables(&mut self) -> Result<()> {
        let mut segment = self.input.segment()?;
        while segment.0.len() > 16 {
            let index = segment.byte()?;
            let mut counts = [0; 16];
            for count in &mut counts {
                *count = segment.byte()?;
            }
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            if total > 256 || total > segment.0.len() {
                return Err(Failure::Damaged("a Huffman table is too long"));
            }
            let (values, rest) = segment.0.split_at(total);
            segment.0 = rest;
            let tables = if index & 0x10 == 0 { &mut self.tables.dc } else { &mut self.tables.ac };
            let table = tables.get_mut(usize::from(index & !0x10));
            let table = table.ok_or(Failure::Damaged("a Huffman table has a number above 3"))?;
            *table = Some(HuffmanSpec::new(counts, values));
        }
        segment.end()
    }

    fn arithmetic_conditioning(&mut self) -> Result<()> {
        let mut segment = self.input.segment()?;
        while !segment.0.is_empty() {
            let (index, value) = (usize::from(segment.byte()?), segment.byte()?);
            match index {
                0..16 if value & 15 <= value >> 4 => self.tables.arithmetic_dc[index] = (value & 15, value >> 4),
                16..32 => self.tables.arithmetic_ac[index - 16] = value,
                _ => return Err(Failure::Damaged("a conditioning table is wrong")),
            }
        }
        Ok(())
    }

    fn quantisation_tables(&mut self) -> Result<()> {
        let mut segment = self.input.segment()?;
        while !segment.0.is_empty() {
            let index = segment.byte()?;
            let mut table = [0; 64];
            for &place in &NATURAL_ORDER[..64] {
                let value = if index >> 4 == 0 { u16::from(segment.byte()?) } else { segment.word()? };
                table[usize::from(place)] = value;
            }
            let slot = self.tables.quantisation.get_mut(usize::from(index & 15));
            *slot.ok_or(Failure::Damaged("a quantisation table has a number above 3"))? = Some(table);
        }
        Ok(())
    }

    fn restart_interval(&mut self) -> Result<()> {
        let mut segment = self.input.segment()?;
        self.tables.restart_interval = usize::from(segment.word()?);
        segment.end()
    }

    fn application(&mut self, marker: u8) -> Result<()> {
        let content = self.input.any_segment()?.0;
        if marker == 0xE0 && content.len() >= 14 && content.starts_with(b"JFIF\0") {
            self.jfif = true;
        }
        if marker == 0xEE && content.len() >= 12 && content.starts_with(b"Adobe") {
            self.adobe = Some(content[11]);
        }
        Ok(())
    }
}

impl Scan {
    /// Refuses a scan that no progressive frame may have.
    fn check_progression(&self) -> Result<()> {
        let ((start, end), (high, low)) = (self.spectral, self.approximation);
        let band = if start == 0 { end == 0 } else { start <= end && end < 64 && self.components.len() == 1 };
        if !band || low > 13 || (high != 0 && low + 1 != high) {
            return Err(Failure::Damaged("a progressive scan is out of order"));
        }
        Ok(())
    }
}
