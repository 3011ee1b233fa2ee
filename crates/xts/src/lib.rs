//! XTS-AES over runs of data units, at the speed of the hardware
