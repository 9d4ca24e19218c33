//! stub
#![allow(missing_docs)]
use std::sync::Arc; use super::*;
#[derive(Clone, Default, Debug)] pub struct ServiceOptions;
pub struct EncoderService(Arc<dyn Encoder>);
pub struct Ticket(Vec<Result<HashCode, EncodeError>>);
impl EncoderService { pub fn start(e: Arc<dyn Encoder>, _o: ServiceOptions) -> Self { Self(e) } pub fn submit(&self, p: Vec<Payload>) -> Result<Ticket> { Ok(Ticket(self.0.encode(&p)?)) } }
impl Ticket { pub fn wait(self) -> Vec<Result<HashCode, EncodeError>> { self.0 } }
pub struct PerceptualHash; impl PerceptualHash { pub fn new(_b: usize) -> Result<Self> { Ok(Self) } }
impl Encoder for PerceptualHash { fn code_len(&self)->CodeLen {unimplemented!()} fn model_id(&self)->&str{""} fn encode(&self,_b:&[Payload])->Result<Vec<Result<HashCode, EncodeError>>>{unimplemented!()} }
pub struct SignLsh; impl SignLsh { pub fn new(_b: CodeLen, _d: usize, _s: u64) -> Result<Self> { Ok(Self) } }
impl Encoder for SignLsh { fn code_len(&self)->CodeLen {unimplemented!()} fn model_id(&self)->&str{""} fn encode(&self,_b:&[Payload])->Result<Vec<Result<HashCode, EncodeError>>>{unimplemented!()} }
