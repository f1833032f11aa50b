//! Safetensors files as streams: the header is read and checked first, then each tensor straight
//! into its array, so that a cache of gigabytes is in memory once. Files are written beside their
//! place and renamed, so a reader finds a whole file or none.

use fs_err as fs;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use spanforge_kernels::ProblemError;
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A tensor file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The file system refuses; the message names the path.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A folder, a pipe or a device where a file is needed.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Not a safetensors file, or a damaged one.
    #[error("{} is not a whole safetensors file: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// A tensor that must be there is not.
    #[error("{}: there is no tensor `{tensor}` ({expected}); the file has: {found}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape and dtype.
        expected: String,
        /// Names that are there.
        found: String,
    },
    /// A tensor of another element type.
    #[error("{}: tensor `{tensor}` is {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
        /// The dtype it should have.
        expected: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have, and why.
        expected: String,
    },
    /// Metadata that makes no sense.
    #[error("{}: metadata `{key}` is {found:?}, expected {expected}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The tensors are well formed but do not make a problem that can be launched.
    #[error("{}: {source}", path.display())]
    Problem {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ProblemError,
    },
    /// More than memory holds.
    #[error("{}: no memory for tensor `{tensor}` ({bytes} bytes)", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its size.
        bytes: usize,
    },
}

/// The most that a header may take, as in the format's own implementation.
const LARGEST_HEADER: u64 = 100_000_000;

/// Bytes that are converted at a time.
const STRETCH: usize = 1 << 20;

/// A safetensors file whose header has been read and agrees with the file's size.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: fs::File,
    header: Metadata,
    data_at: u64,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TensorFileError> {
        let about = fs::metadata(path)?;
        if !about.is_file() {
            return Err(TensorFileError::NotAFile(path.to_owned()));
        }
        let malformed = |fault| TensorFileError::Malformed { path: path.to_owned(), fault };
        let mut file = fs::File::open(path)?;
        let size = about.len();
        let mut length = [0; 8];
        if size < 8 {
            return Err(malformed(format!("it has {size} bytes, fewer than a header's length")));
        }
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER {
            return Err(malformed(format!(
                "its header would have {length} bytes, and {LARGEST_HEADER} are the most"
            )));
        }
        let data_at = 8 + length;
        if data_at > size {
            return Err(malformed(format!(
                "its header would have {length} bytes, and only {} follow",
                size - 8
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| malformed(format!("its header: {e}")))?;
        let (data, expected) = (size - data_at, header.data_len() as u64);
        if data != expected {
            return Err(malformed(format!(
                "its tensors take {expected} bytes, and {data} follow the header"
            )));
        }
        Ok(Self { path: path.to_owned(), file, header, data_at })
    }

    /// Names of the tensors, in no order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.header.info(tensor).is_some()
    }

    /// What the header says of a tensor; `expected` is for the message where there is none.
    pub(crate) fn info(
        &self,
        tensor: &str,
        expected: &str,
    ) -> Result<&TensorInfo, TensorFileError> {
        self.header.info(tensor).ok_or_else(|| {
            let mut names = self.header.offset_keys();
            names.sort_unstable();
            let more = names.len().saturating_sub(20);
            names.truncate(20);
            let mut found = if names.is_empty() { "nothing".into() } else { names.join(", ") };
            if more > 0 {
                found.push_str(&format!(" and {more} more"));
            }
            let (tensor, expected) = (tensor.to_owned(), expected.to_owned());
            TensorFileError::Missing { path: self.path.clone(), tensor, expected, found }
        })
    }

    /// Reads the elements of a tensor of `N`-byte elements.
    pub(crate) fn read<T, const N: usize>(
        &mut self,
        tensor: &str,
        expected: &str,
        element: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, TensorFileError> {
        let (from, to) = self.info(tensor, expected)?.data_offsets;
        let bytes = to.saturating_sub(from);
        let mut values = Vec::new();
        values.try_reserve_exact(bytes / N).map_err(|_| TensorFileError::Memory {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            bytes,
        })?;
        self.file.seek(SeekFrom::Start(self.data_at + from as u64))?;
        let mut stretch = vec![0; bytes.min(STRETCH)];
        let mut left = bytes;
        while left > 0 {
            let now = &mut stretch[..left.min(STRETCH)];
            self.file.read_exact(now)?;
            values.extend(now.as_chunks::<N>().0.iter().map(|bytes| element(*bytes)));
            left -= now.len();
        }
        Ok(values)
    }
}

/// Elements to write.
pub(crate) enum Elements<'a> {
    Bits16(Dtype, &'a [u16]),
    /// Elements of 8 bits.
    LowerBytes(Dtype, &'a [u16]),
    I32(&'a [i32]),
    F32(&'a [f32]),
}

impl Elements<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Bits16(dtype, _) | Self::LowerBytes(dtype, _) => *dtype,
            Self::I32(_) => Dtype::I32,
            Self::F32(_) => Dtype::F32,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Bits16(_, values) => 2 * values.len(),
            Self::LowerBytes(_, values) => values.len(),
            Self::I32(values) => 4 * values.len(),
            Self::F32(values) => 4 * values.len(),
        }
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Bits16(_, v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
            Self::LowerBytes(_, v) => v.iter().try_for_each(|v| to.write_all(&[*v as u8])),
            Self::I32(v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
            Self::F32(v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
        }
    }
}

/// A file that is written beside its place and takes it when it is whole; dropped before that, it
/// leaves nothing.
pub struct StagedFile {
    target: PathBuf,
    file: tempfile::NamedTempFile,
}

impl StagedFile {
    /// Starts a file that is to be at `path`, so that a folder that cannot be written is found
    /// before the work whose results it is for.
    pub fn create(path: &Path) -> Result<Self, TensorFileError> {
        // An existing name may be a link: what it points to is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&target).is_ok_and(|about| !about.is_file()) {
            return Err(TensorFileError::NotAFile(path.to_owned()));
        }
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".spanforge-");
        #[cfg(unix)]
        {
            // As of any new file, less the umask; temporary files are private by default.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).map_err(|e| named(path, &e))?;
        Ok(Self { target, file })
    }

    /// Writes the tensors and puts the file in its place.
    pub(crate) fn write_tensors(
        mut self,
        metadata: Option<HashMap<String, String>>,
        tensors: &[(&str, Vec<usize>, Elements<'_>)],
    ) -> Result<(), TensorFileError> {
        let mut at = 0;
        let infos = tensors.iter().map(|(name, shape, elements)| {
            let from = at;
            at += elements.bytes();
            let (dtype, shape) = (elements.dtype(), shape.clone());
            ((*name).to_owned(), TensorInfo { dtype, shape, data_offsets: (from, at) })
        });
        let malformed =
            |fault: String| TensorFileError::Malformed { path: self.target.clone(), fault };
        let header = Metadata::new(metadata, infos.collect()).map_err(|e| malformed(e.to_string()));
        let mut header = serde_json::to_vec(&header?).map_err(|e| malformed(e.to_string()))?;
        // Tensor data starts at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');

        let written = (|| {
            let mut to = BufWriter::with_capacity(STRETCH, self.file.as_file_mut());
            to.write_all(&(header.len() as u64).to_le_bytes())?;
            to.write_all(&header)?;
            for (_, _, elements) in tensors {
                elements.write(&mut to)?;
            }
            to.flush()?;
            drop(to);
            // A disk may say only now that it is full.
            self.file.as_file().sync_all()
        })();
        written.map_err(|e| named(&self.target, &e))?;
        self.file.persist(&self.target).map_err(|e| named(&self.target, &e.error))?;
        Ok(())
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}
