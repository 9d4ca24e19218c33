//! Headers that are right, wrong in every way, and cut at every length.

use proptest::prelude::*;

use super::*;

fn header(text: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn parsed(text: &str) -> Result<(NpyHeader, usize), String> {
    parse_header(&header(text))
}

fn opened(bytes: &[u8]) -> Result<NpyFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, bytes).unwrap();
    NpyFile::open(path)
}

/// A file of `values`, whose bytes are given.
fn file(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let mut bytes = header(&format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"
    ));
    bytes.extend_from_slice(values);
    bytes
}

#[test]
fn headers_as_numpy_writes_them() {
    let (found, start) =
        parsed("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n").unwrap();
    assert_eq!(
        (found.dtype, found.shape, start),
        (NpyType::F32, vec![3, 4], 73)
    );
    // Any order of keys, either quote, no blanks; a vector may be in "Fortran order".
    let (found, _) = parsed("{\"shape\":(7,),\"descr\":\"|u1\",\"fortran_order\":True}").unwrap();
    assert!(!found.fortran_order);
    assert_eq!((found.dtype, found.shape), (NpyType::U8, vec![7]));
    let (found, _) = parsed("{'descr': '<i8', 'fortran_order': False, 'shape': ()}").unwrap();
    assert_eq!(found.shape, Vec::<usize>::new());
    let text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}";
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend_from_slice(&(text.len() as u32).to_le_bytes());
    long.extend_from_slice(text.as_bytes());
    assert_eq!(parse_header(&long).unwrap().1, 12 + text.len());
    for shape in [vec![], vec![5], vec![60_000, 1280]] {
        let header = NpyHeader::new(NpyType::F32, shape);
        let bytes = header.to_bytes();
        assert!(bytes.len().is_multiple_of(64));
        assert_eq!(parse_header(&bytes).unwrap(), (header, bytes.len()));
    }
}

#[test]
fn wrong_headers_are_refused_with_a_remedy() {
    let reason = |text: &str| parsed(text).unwrap_err();
    assert!(
        reason("{'descr': '>f4', 'fortran_order': False, 'shape': (3,)}")
            .starts_with("the numbers are big endian (>f4); save")
    );
    assert!(
        reason("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}")
            .contains("pickled objects")
    );
    assert!(
        reason("{'descr': '<c8', 'fortran_order': False, 'shape': (3,)}")
            .ends_with("found the type \"<c8\"")
    );
    assert!(
        reason("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}")
            .contains("structured type")
    );
    assert!(reason("{'descr': '<f4', 'shape': (3,)}").contains("lacks"));
    assert!(
        reason("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3,)}")
            .contains("descr twice")
    );
    assert!(
        reason("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}")
            .contains("size of the shape")
    );
    assert!(
        reason("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}")
            .contains("size of the shape")
    );
    assert!(
        reason("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)} x")
            .contains("nothing after")
    );
    assert!(
        reason("{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}").contains("True or False")
    );
    assert!(reason("{'x': '<f4'}").contains("found \"x\""));
    assert!(reason("").contains("expected {"));
    assert!(
        parse_header(b"PK\x03\x04 and so on")
            .unwrap_err()
            .contains("starts with")
    );
    assert!(
        parse_header(b"\x93NUMPY\x04\x00\x00\x00")
            .unwrap_err()
            .contains("found 4.0")
    );
    let huge = b"\x93NUMPY\x02\x00\xff\xff\xff\xff";
    assert!(parse_header(huge).unwrap_err().contains("found 4294967295"));
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = file("<f4", "(2, 3)", &[0; 24]);
    assert!(opened(&whole).is_ok());
    for length in 0..whole.len() {
        let error = opened(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains("x.npy") && !error.contains('\n'), "{error}");
    }
    let error = opened(&file("<f4", "(2, 3)", &[0; 25])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("expected 24 bytes of values for the shape [2, 3] of <f4, found 25"),
        "{error}"
    );
    // Sizes whose product no integer holds, or holds only by wrapping round.
    for shape in [
        "(4294967296, 4294967296)",
        "(9223372036854775807, 2)",
        "(4611686018427387904, 4)",
    ] {
        let error = opened(&file("<f4", shape, &[0; 24]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("more than memory can hold"), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_unopened() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = vec![dir.path().to_owned()];
    #[cfg(unix)]
    {
        // Nobody writes into it, so opening it would never end.
        let pipe = dir.path().join("pipe.npy");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        paths.push(pipe);
    }
    for path in paths {
        let error = NpyFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("found a folder or a pipe"), "{error}");
    }
}

#[test]
fn floats_of_every_width() {
    let values = [0.0f32, -1.5, 65504.0, 2f32.powi(-24), f32::INFINITY];
    let halves = [0u16, 0xbe00, 0x7bff, 0x0001, 0x7c00];
    let bytes: [(&str, Vec<u8>); 3] = [
        ("<f2", halves.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("<f4", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        (
            "<f8",
            values
                .iter()
                .flat_map(|&v| f64::from(v).to_le_bytes())
                .collect(),
        ),
    ];
    for (descr, bytes) in bytes {
        let mut row = [0.0; 5];
        opened(&file(descr, "(1, 5)", &bytes))
            .unwrap()
            .copy_row(0, &mut row)
            .unwrap();
        assert_eq!(row, values, "{descr}");
    }
    assert!(f32_of_half(0xfe00).is_nan());
    assert_eq!(f32_of_half(0x03ff), 1023.0 * 2f32.powi(-24));
    assert!(
        opened(&file("|u1", "(1, 1)", &[1]))
            .unwrap()
            .copy_row(0, &mut [0.0])
            .is_err()
    );
}

#[test]
fn integers_of_every_width() {
    fn bytes<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
        values.into_iter().flatten().collect()
    }
    let cases: [(&str, Vec<u8>, [i64; 2]); 9] = [
        ("|b1", vec![0, 1], [0, 1]),
        ("|u1", vec![200, 1], [200, 1]),
        ("|i1", vec![200, 1], [-56, 1]),
        (
            "<i2",
            bytes([(-2i16).to_le_bytes(), 3i16.to_le_bytes()]),
            [-2, 3],
        ),
        (
            "<u2",
            bytes([65_000u16.to_le_bytes(), 3u16.to_le_bytes()]),
            [65_000, 3],
        ),
        (
            "<i4",
            bytes([(-2i32).to_le_bytes(), 3i32.to_le_bytes()]),
            [-2, 3],
        ),
        (
            "<u4",
            bytes([u32::MAX.to_le_bytes(), 3u32.to_le_bytes()]),
            [u32::MAX.into(), 3],
        ),
        (
            "<i8",
            bytes([i64::MIN.to_le_bytes(), 3i64.to_le_bytes()]),
            [i64::MIN, 3],
        ),
        (
            "<u8",
            bytes([7u64.to_le_bytes(), 3u64.to_le_bytes()]),
            [7, 3],
        ),
    ];
    for (descr, bytes, expected) in cases {
        let found = opened(&file(descr, "(2,)", &bytes))
            .unwrap()
            .integers()
            .unwrap();
        assert_eq!(found, expected, "{descr}");
    }
    assert!(
        opened(&file("<u8", "(1,)", &[255; 8]))
            .unwrap()
            .integers()
            .is_err()
    );
    let error = opened(&file("<f4", "(1,)", &[0; 4]))
        .unwrap()
        .integers()
        .unwrap_err();
    assert!(
        error.to_string().ends_with("save x.astype('int64')"),
        "{error}"
    );
}

#[test]
fn matrices_of_any_type_and_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.npy");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_matrix(&path)
    };
    let entries = [0.5, -1.0, 1e-300, 4.0, 5.0, 6.0];
    let bytes = float_bytes(3, &entries);
    assert!((bytes.len() - 48).is_multiple_of(64));
    assert_eq!(read(&bytes).unwrap(), (2, 3, entries.to_vec()));
    assert_eq!(
        read(&i8_bytes(2, &[1, -1, -1, -1])).unwrap(),
        (2, 2, vec![1.0, -1.0, -1.0, -1.0])
    );
    assert_eq!(
        read(&file("<u8", "(1, 1)", &u64::MAX.to_le_bytes()))
            .unwrap()
            .2,
        [u64::MAX as f64]
    );
    let turned = |bytes: &[u8]| {
        let at = bytes.windows(5).position(|w| w == b"False").unwrap();
        let mut bytes = bytes.to_vec();
        bytes.splice(at..at + 5, *b"True ");
        bytes
    };
    // Columns first: 1 2 | 3 4 | 5 6.
    assert_eq!(
        read(&turned(&i8_bytes(3, &[1, 2, 3, 4, 5, 6]))).unwrap(),
        (2, 3, vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0])
    );
    // Rows of large files are not gathered from columns.
    let error = NpyFile::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("the values are in Fortran order; save numpy.ascontiguousarray(x)"),
        "{error}"
    );
    let error = read(&file("<f4", "(2,)", &[0; 8])).unwrap_err().to_string();
    assert!(
        error.ends_with("expected a matrix, found the shape [2]"),
        "{error}"
    );
}

#[test]
fn vectors_are_rows_of_floats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.npy");
    std::fs::write(&path, float_bytes(2, &[1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!(read_vectors(&path).unwrap(), (vec![1.0, 2.0, 3.0, 4.0], 2));
    for (descr, shape, n_bytes) in [
        ("<f4", "(2,)", 8),
        ("|i1", "(2, 2)", 4),
        ("<f4", "(2, 0)", 0),
    ] {
        std::fs::write(&path, file(descr, shape, &vec![0; n_bytes])).unwrap();
        let error = read_vectors(&path).unwrap_err().to_string();
        assert!(
            error.contains("expected a matrix of floats, a row a vector"),
            "{error}"
        );
    }
    std::fs::write(&path, file("<f4", "(0, 2)", &[])).unwrap();
    assert_eq!(NpyFile::open(&path).unwrap().vectors().unwrap(), (0, 2));
    let error = read_vectors(&path).unwrap_err().to_string();
    assert!(error.ends_with("found no row"), "{error}");
    // A row that no memory holds, though there is none.
    std::fs::write(&path, file("<f4", "(0, 9223372036854775807, 4)", &[])).unwrap();
    assert!(NpyFile::open(&path).is_err());
}

#[test]
fn a_killed_writer_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.npy");
    let part = dir.path().join("f.npy.part");
    let mut writer = NpyWriter::resume(&path, 3, 2).unwrap();
    writer.append(&[1., 2.]).unwrap();
    assert!(writer.append(&[1.]).is_err());
    let error = NpyWriter::resume(&path, 3, 2).err().unwrap();
    assert!(error.to_string().contains("no other process"), "{error}");
    drop(writer);
    // A row that was being written.
    let mut bytes = std::fs::read(&part).unwrap();
    bytes.extend_from_slice(&[9; 5]);
    std::fs::write(&part, bytes).unwrap();
    assert!(!path.exists());
    let error = NpyWriter::resume(&path, 4, 2).err().unwrap();
    assert!(
        error.to_string().ends_with("found another; remove it"),
        "{error}"
    );
    let mut writer = NpyWriter::resume(&path, 3, 2).unwrap();
    assert_eq!(writer.written(), 1);
    assert!(writer.append(&[0.; 6]).is_err());
    writer.append(&[3., 4., 5., 6.]).unwrap();
    writer.finish().unwrap();
    assert!(path.exists() && !part.exists());
    let file = NpyFile::open(&path).unwrap();
    let mut row = [0.0; 2];
    for (i, expected) in [[1., 2.], [3., 4.], [5., 6.]].into_iter().enumerate() {
        file.copy_row(i, &mut row).unwrap();
        assert_eq!(row, expected);
    }
    assert!(NpyWriter::resume(&path, 3, 2).unwrap().finish().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make the parser panic, and what it accepts lies within them.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_header(&bytes);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = parsed(text);
        }
    }

    /// A good header with one byte changed is read as some header or refused in one line.
    #[test]
    fn any_changed_byte(at in 0usize..66, byte in any::<u8>()) {
        let mut bytes = file("<f4", "(2, 3)", &[0; 24]);
        let at = at % bytes.len();
        bytes[at] = byte;
        match parse_header(&bytes) {
            Ok((_, start)) => prop_assert!(start <= bytes.len()),
            Err(reason) => prop_assert!(!reason.contains('\n'), "{reason}"),
        }
    }
}
