//! A model's weights from safetensors: `model.safetensors`, or the files that
//! `model.safetensors.index.json` names.

use super::ModelError;
use super::linear::{Elements, Matrix};
use crate::tensor_file::{TensorFile, TensorFileError};
use fs_err as fs;
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The files of a model, open.
pub(super) struct Weights {
    files: Vec<TensorFile>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the files of the model in `folder`.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (single, index) =
            (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        let paths = if single.is_file() {
            vec![single]
        } else if index.is_file() {
            let bad = |fault: String| ModelError::Index { path: index.clone(), fault };
            let text = fs::read_to_string(&index)?;
            let parsed: Index = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
            let names: BTreeSet<&String> = parsed.weight_map.values().collect();
            if names.is_empty() {
                return Err(bad("it names no file".to_owned()));
            }
            if let Some(outside) =
                names.iter().find(|name| Path::new(name).components().count() != 1)
            {
                return Err(bad(format!("{outside:?} is not the name of a file beside it")));
            }
            names.into_iter().map(|name| folder.join(name)).collect()
        } else {
            return Err(ModelError::NoWeights(folder.to_owned()));
        };
        let files: Vec<TensorFile> =
            paths.iter().map(|path| TensorFile::open(path)).collect::<Result<_, _>>()?;
        let mut places = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            places.extend(file.names().into_iter().map(|name| (name, place)));
        }
        Ok(Self { files, places })
    }

    /// The matrix of a name, `[rows, columns]`.
    pub fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, ModelError> {
        Ok(Matrix::new(rows, columns, self.elements(name, &[rows, columns])?))
    }

    /// The vector of a name, of `size` elements.
    pub fn vector(&mut self, name: &str, size: usize) -> Result<Vec<f32>, ModelError> {
        Ok(match self.elements(name, &[size])? {
            Elements::F32(all) => all,
            Elements::F16(all) => all.into_iter().map(f16::to_f32).collect(),
            Elements::Bf16(all) => all.into_iter().map(bf16::to_f32).collect(),
        })
    }

    fn elements(&mut self, name: &str, shape: &[usize]) -> Result<Elements, ModelError> {
        // Where it is in no file, the first says what it has.
        let file = &mut self.files[self.places.get(name).copied().unwrap_or(0)];
        let expected = format!("{shape:?}, as config.json has it");
        let info = file.info(name, &expected)?;
        let (path, tensor) = (file.path().to_owned(), name.to_owned());
        if info.shape != shape {
            let found = info.shape.clone();
            return Err(TensorFileError::Shape { path, tensor, found, expected }.into());
        }
        Ok(match info.dtype {
            Dtype::F32 => Elements::F32(file.read(name, &expected, f32::from_le_bytes)?),
            Dtype::F16 => Elements::F16(file.read(name, &expected, f16::from_le_bytes)?),
            Dtype::BF16 => Elements::Bf16(file.read(name, &expected, bf16::from_le_bytes)?),
            other => {
                let (found, expected) = (other.to_string(), "F32, F16 or BF16".to_owned());
                return Err(TensorFileError::Dtype { path, tensor, found, expected }.into());
            }
        })
    }
}
